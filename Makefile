# make demo   label the example images with the bundled checkpoints
# make distill-demo   from drawn pictures to a trained small model, STUDENT=mask-rcnn for another
# make test   the tests, 9 to 10 minutes on two cores; make coverage counts lines as well
# make lint   ruff and mypy
# Each sets up .venv first if needed. PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo distill-demo test coverage lint install clean

demo: install
	$(BIN)/autodistill-sam3 demo --output demo_output

STUDENT ?= yolo11n-seg
distill-demo: install
	$(BIN)/python examples/distill_demo.py --output output/distill_demo --student $(STUDENT)

# One thread for each of two processes: what is tested is small, and threads would wait for each other. In the order of
# the folders, since what takes longest is in the first; conftest.py says which tests stay together.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Apart, since counting lines takes time.
coverage: install
	$(BIN)/python -m pytest -m "not slow and not gpu" --cov --cov-report=term:skip-covered

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[sam3,onnx,ray,test,dev]'
	$(BIN)/python -m pip install --quiet --no-deps label-studio-sdk==2.1.2
	touch $@

clean:
	rm -rf .venv
