# make demo   a mesh working on this machine, in under three minutes after the build
# make test   everything that proves it, lint included
# make build  leaves .venv/bin/nodeagent
# make lint   types, style, layers, C format and warnings
# make fuzz   each parser's fuzzer for FUZZ_SECONDS
# make bench-check  instructions per request, against the committed reference
# make clean
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# Debian's interpreter, with its site packages: python3-nftables and python3-bpfcc exist only there.
PYTHON       := /usr/bin/python3
VENV         := .venv
BIN          := $(VENV)/bin
STAMPS       := build/stamps
FUZZ_SECONDS ?= 30
CORES        := $(shell nproc)
PYTEST_ARGS  ?=
# Files of tests are shared out to processes. Most of their time is waiting, so there may be more of these than cores.
PYTEST_SHARE ?= -n 3 --dist loadfile --no-loadscope-reorder

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: build test demo lint fuzz clean bench-build bench-check bench-reference native-test fuzz-build python-test

$(STAMPS)/deb-%: deploy/install-deps.sh
	$(call say,Debian packages for $*)
	@deploy/install-deps.sh $*
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: pyproject.toml $(STAMPS)/deb-build
	$(call say,Python environment in $(VENV))
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check scikit-build-core cffi grpcio-tools setuptools
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --config-settings=wheel.cmake=false -e '.[echo]'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv-%: pyproject.toml $(STAMPS)/venv
	$(call say,Python packages for $*)
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --config-settings=wheel.cmake=false -e '.[echo,$*]'
	@touch $@

build: $(STAMPS)/venv
	$(call say,engine extension and protocol modules)
	@cmake -S . -B build/release -G Ninja -DNODEAGENT_INPLACE=ON -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  --log-level=WARNING
	@cmake --build build/release

native-test: $(STAMPS)/deb-build $(STAMPS)/deb-test
	$(call say,C unit tests under ASan and UBSan)
	@CC=clang CXX=clang++ cmake -S . -B build/asan -G Ninja -DNODEAGENT_TESTS=ON -DNODEAGENT_EXTENSION=OFF \
	  -DCMAKE_BUILD_TYPE=Debug --log-level=WARNING
	@cmake --build build/asan
	@ctest --test-dir build/asan/native -j $(CORES) --output-on-failure --no-tests=error

fuzz-build: $(STAMPS)/deb-build $(STAMPS)/deb-test
	$(call say,fuzzers)
	@CC=clang CXX=clang++ cmake -S . -B build/fuzz -G Ninja -DNODEAGENT_FUZZ=ON -DNODEAGENT_EXTENSION=OFF \
	  --log-level=WARNING
	@cmake --build build/fuzz

fuzz: fuzz-build
	@printf '%s\n' build/fuzz/native/*_fuzz | xargs -n 1 -P $(CORES) native/fuzz/run.sh $(FUZZ_SECONDS)

bench-build: $(STAMPS)/deb-build $(STAMPS)/deb-bench
	$(call say,micro-benchmarks)
	@cmake -S . -B build/bench -G Ninja -DNODEAGENT_BENCH=ON -DNODEAGENT_EXTENSION=OFF --log-level=WARNING
	@cmake --build build/bench

bench-check: bench-build
	$(call say,instructions per request)
	@$(PYTHON) native/bench/instructions.py build/bench/native/engine_bench

bench-reference: bench-build
	@$(PYTHON) native/bench/instructions.py build/bench/native/engine_bench --update

python-test: build $(STAMPS)/deb-test $(STAMPS)/venv-test
	$(call say,Python tests)
	@$(BIN)/pytest $(PYTEST_SHARE) $(PYTEST_ARGS)

test: lint native-test bench-check
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=5
	@$(MAKE) --no-print-directory python-test

demo: build $(STAMPS)/deb-test
	@$(BIN)/python deploy/samples/bookinfo/demo.py

lint: build $(STAMPS)/deb-lint $(STAMPS)/venv-lint $(STAMPS)/venv-test
	$(call say,ruff)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(call say,mypy)
	@$(BIN)/mypy
	$(call say,import-linter)
	@$(BIN)/lint-imports
	$(call say,clang-format)
	@find native bpf -name '*.[ch]' -o -name '*.cc' | xargs -r clang-format --dry-run -Werror
	$(call say,manifests)
	@$(BIN)/python deploy/check_manifests.py

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache
	rm -f nodeagent/dataplane/_native/*.so nodeagent/dataplane/_native/*.bpf.o nodeagent/proto/*_pb2*.py nodeagent/proto/*_pb2.pyi
