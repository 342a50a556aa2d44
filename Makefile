# make demo    build and run the demo
# make test    build and run every test
# make check   formatting, lints, documentation, then the tests: what CI runs
# Each installs what is missing first, and says what.

CARGO ?= cargo

.PHONY: demo test check setup fmt lint doc clean

demo: setup
	$(CARGO) run --release --bin daxpager-demo

test: setup
	tools/with-hugepages $(CARGO) test --all-targets
	$(CARGO) test --doc
	$(CARGO) build --examples --no-default-features

check: setup fmt lint doc test

fmt:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --lib --no-default-features -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --lib

setup:
	@tools/setup

clean:
	$(CARGO) clean
