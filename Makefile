# Short names for dev.py. Arguments: make test ARGS="tests/store -x".
PYTHON ?= python3

.PHONY: demo test check bench faults

demo test check bench faults:
	@$(PYTHON) dev.py $@ $(ARGS)
