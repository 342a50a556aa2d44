# make demo    build and run the demo
# make test    build and run every test; with DAXPAGER_LONG=1, as CI does, those that repeat do so more often
# make stress  the stress harness: a minute of everything; or what ARGS says, as in ARGS="--help"
# make bench   what a fault costs, beside the kernel's own; or what ARGS says, as in ARGS=--bars or ARGS="--help"
# make ship    the other targets: tests with musl, with ARGS=all every one; for aarch64 a build, and what needs no kernel under qemu
# make model   the core under the schedule checkers; more schedules with MODEL_SCHEDULES=100000; and the three that follow
# make miri    the core on the fake page table and the unit tests that make no system call, under Miri
# make tsan    the library's tests and the stress harness under ThreadSanitizer
# make asan    the same under AddressSanitizer
# make check   formatting, lints, documentation, the tests, some schedules, the other targets, the audit: what CI runs
# make quick   a part of that, for after a change of one file: formatting, clippy, the rules' tests
# make audit   licences, doubles and advisories of the dependencies, with cargo-deny
# make help    this list
# Each installs what is missing first, and says what.

CARGO ?= cargo

STRESS = $(CARGO) run --release --features sabotage,fake --bin daxpager-stress --
BENCH = $(CARGO) run --release --quiet --bin daxpager-bench --

.PHONY: demo test stress bench ship model schedules miri tsan asan check quick audit help setup fmt lint doc clean

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
	@tools/with-nightly miri tsan asan

miri: setup
	@tools/setup-nightly miri rust-src
	tools/miri

tsan asan: setup
	@tools/setup-nightly rust-src
	tools/sanitize $@

ship: setup
	tools/ship $(ARGS)

# A part of it, for every change.
schedules: setup
	@mkdir -p target
	$(CARGO) test --no-default-features --features shuttle --test model -- --nocapture --test-threads 1 2>target/model.log \
		|| { tail -n 40 target/model.log; false; }

check: setup fmt lint doc test schedules ship
	@tools/audit --if-there

# The tests that say soonest that something is broken: the fault table and its rules, the rooms, the documents.
quick: setup fmt
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test --lib --test rooms --test documents --test sources --test fake_smoke --test races --test spec

audit:
	@tools/audit

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

fmt:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	tools/each-feature $(CARGO) clippy --no-default-features --lib --bins
	$(CARGO) clippy --no-default-features --features shuttle,loom --test model --test loom -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --lib

setup:
	@tools/setup

clean:
	$(CARGO) clean
