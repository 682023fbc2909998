# Short names for dev.py. Arguments: make test ARGS="tests/store -x".
PYTHON ?= python3

.PHONY: demo test check bench

demo test check bench:
	@$(PYTHON) dev.py $@ $(ARGS)
