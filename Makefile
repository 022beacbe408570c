# make verify writes nothing and is what CI runs; make fix rewrites.

.PHONY: verify fix format lint doc test cluster demo fuzz model bench

verify: format lint doc test

format:
	cargo fmt --all -- --check

lint:
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
	cargo test --locked

# The model check with its deep worlds: 5.5 million states, minutes of one core, 3 GB. Part of a nightly run;
# `make test` searches the small worlds.
model:
	MODEL_DEEP=1 cargo test --locked -p dsm-protocol --test model -- --nocapture --test-threads 1

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

cluster:
	cargo run --release

demo:
	examples/failover.sh

# Each target for so long, in seconds. Needs `cargo install cargo-fuzz` and a C++ compiler. There is no unsafe code to
# sanitize, and without a sanitizer any toolchain will do. What is found new is kept out of the corpus of the repository.
SECONDS ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard protocol/fuzz/fuzz_targets/*.rs)))

fuzz:
	cd protocol && for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/target/corpus/$$target && \
		cargo fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -max_len=2048 -timeout=20 -rss_limit_mb=1024 || exit 1; \
	done
bench:
	cargo run --release --bin dsm-test-harness -- --slaves 5 --clients 18 --think 0 --check
