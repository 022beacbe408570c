# make verify writes nothing and is what CI runs; make fix rewrites.

.PHONY: verify fix format lint doc test model cluster demo

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
