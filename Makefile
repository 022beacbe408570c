# make verify writes nothing and is what CI runs; make fix rewrites; make nightly runs for an hour or more.

.PHONY: verify fix format lint doc test nightly nightly-faults cluster demo

verify: format lint doc test

format:
	cargo fmt --all -- --check

lint:
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
	cargo test --locked

# The long forms of tests that CI runs in minutes, a target for each kind; `make -k nightly` runs all though one fails.
nightly: nightly-faults

# Real processes: 200 disk calls for each fault, 3,000 kills, 600 pauses, 1,000 power losses. As root, or much is SKIPPED.
nightly-faults:
	DSM_NIGHTLY=1 cargo test --locked --no-fail-fast --test disk_errors --test chaos -- --nocapture --test-threads=1

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

cluster:
	cargo run --release

demo:
	examples/failover.sh
