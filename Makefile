# Short names for dev.py. Arguments: make test ARGS="tests/store -x", make faults N=3.
PYTHON ?= python3

.PHONY: demo test check bench faults

demo test check bench:
	@$(PYTHON) dev.py $@ $(ARGS)

faults:
	@$(PYTHON) dev.py faults $(N)
