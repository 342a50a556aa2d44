# make demo    build and run the demo
# make test    build and run every test; with DAXPAGER_LONG=1, as CI does, those that repeat do so more often
# make stress  the stress harness: a minute of everything; or what ARGS says, as in ARGS="--help"
# make bench   what a fault costs, beside the kernel's own; or what ARGS says, as in ARGS=--bars or ARGS="--help"
# make model   the core under the schedule checkers; more schedules with MODEL_SCHEDULES=100000; and make miri
# make miri    the unit tests that make no system call, under Miri
# make check   formatting, lints, documentation, the tests, some schedules, the audit: what CI runs
# make audit   licences, doubles and advisories of the dependencies, with cargo-deny
# make help    this list
# Each installs what is missing first, and says what.

CARGO ?= cargo

STRESS = $(CARGO) run --release --features sabotage,fake --bin daxpager-stress --
BENCH = $(CARGO) run --release --quiet --bin daxpager-bench --

.PHONY: demo test stress bench model schedules miri check audit help setup fmt lint doc clean

demo: setup
	$(CARGO) run --release --features inside --bin daxpager-demo

test: setup
	tools/with-hugepages tools/run-tests
	$(CARGO) test --doc
	$(CARGO) build --examples --no-default-features

stress: setup
	@mkdir -p target
ifdef ARGS
	$(STRESS) $(ARGS)
else
	$(STRESS) --scenario all --seconds 42 --mix-seconds 3 --report target/stress.html
	$(STRESS) --scenario all --seconds 18 --mix-seconds 3 --inject all --quiet
endif

# Built before the huge pages are taken.
bench: setup
	@mkdir -p target
	$(CARGO) build --release --bin daxpager-bench
ifdef ARGS
	tools/with-hugepages $(BENCH) $(ARGS)
else
	tools/with-hugepages $(BENCH) --html target/bench.html
endif

# What the checkers say of the schedules that fail on purpose goes to a file, and is shown if one fails that must not.
model: setup schedules
	$(CARGO) test --no-default-features --features loom --test loom
	@if tools/setup-miri; then $(MAKE) --no-print-directory miri; else echo "LEFT OUT: Miri. See above for why"; fi

# Two cases of each property: Miri is some hundred times slower than the CPU.
miri: setup
	@tools/setup-miri
	PROPTEST_CASES=2 MIRIFLAGS=-Zmiri-disable-isolation \
		cargo +nightly miri test --no-default-features --features fake,sabotage --lib

# A part of it, for every change.
schedules: setup
	@mkdir -p target
	$(CARGO) test --no-default-features --features shuttle --test model -- --nocapture --test-threads 1 2>target/model.log \
		|| { tail -n 40 target/model.log; false; }

check: setup fmt lint doc test schedules
	@tools/audit --if-there

audit:
	@tools/audit

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

fmt:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --lib --no-default-features -- -D warnings
	$(CARGO) clippy --no-default-features --features shuttle,loom --lib --test model --test loom -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --lib

setup:
	@tools/setup

clean:
	$(CARGO) clean
