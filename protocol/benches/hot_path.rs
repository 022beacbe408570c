//! How long the steps of a request take, each by itself: what a client sends, what goes to slaves and back, what goes to the
//! log, and the rules between. `make bench-micro`; whether a change made requests cheaper, only `make bench-core` says.

use bytes::BytesMut;
use criterion::{criterion_group, criterion_main, BatchSize, Criterion, Throughput};
use dsm_benches::{key, pipelined_gets, value, Cluster, EPOCH, REIGN};
use dsm_protocol::command::Reply;
use dsm_protocol::frame;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Stamp, Version};
use dsm_protocol::machine::master::{Directory, Entry, Slot};
use dsm_protocol::record::{self, line_bytes_max, Operation, Place, Scanner, Step};
use dsm_protocol::resp::{self, Conversation, Limits, Parser, Protocol, ServerFacts, Shape};
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

const PIPELINE: usize = 16;

const VALUE_MAX: usize = 16 << 20;

/// Keys in the directories that are measured: one that fits into a processor's cache, and one that does not.
const KEYS: [usize; 2] = [1_000, 1_000_000];

fn resp(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("resp");
    group.throughput(Throughput::Elements(PIPELINE as u64));
    let sent = pipelined_gets(PIPELINE);
    let limits = Limits::for_values(VALUE_MAX);
    let facts = ServerFacts { limits, clients_max: 1, idle_timeout: Duration::ZERO, fsync: "always" };
    let parse = |mut buffer: BytesMut| {
        let mut parser = Parser::new(limits);
        let mut requests = 0;
        while let Ok(Some(args)) = parser.next(&mut buffer) {
            black_box(&args);
            requests += 1;
        }
        assert_eq!(requests, PIPELINE);
    };
    group.bench_function("parse 16 GETs", |b| b.iter_batched(|| sent.clone(), parse, BatchSize::SmallInput));
    let understand = |mut buffer: BytesMut| {
        let (mut parser, mut out) = (Parser::new(limits), Vec::new());
        let mut conversation = Conversation::new(1, facts, Rc::default());
        while let Ok(Some(args)) = parser.next(&mut buffer) {
            black_box(conversation.handle(args, &mut out));
        }
    };
    group.bench_function("understand 16 GETs", |b| {
        b.iter_batched(|| sent.clone(), understand, BatchSize::SmallInput);
    });
    let reply = Reply::Value(value());
    let mut out = Vec::new();
    group.bench_function("encode 16 values", |b| {
        b.iter(|| {
            out.clear();
            (0..PIPELINE).for_each(|_| {
                resp::encode_reply(Protocol::Resp2, &Shape::Plain, black_box(&reply), &mut out)
            });
        });
    });
    group.finish();
}

fn frames(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("frames");
    let stamp = Stamp { version: Version::new(EPOCH, 9), reign: REIGN };
    let (key, value) = (key(1), value());
    let mut out = Vec::new();
    group.bench_function("encode a write", |b| {
        b.iter(|| {
            out.clear();
            frame::encode_write(stamp, black_box(&key), black_box(&value), &mut out);
        });
    });
    let mut bytes = Vec::new();
    frame::encode_value(1, stamp, &value, None, &mut bytes);
    let bytes = BytesMut::from(&bytes[..]);
    group.bench_function("decode a value", |b| {
        let decode = |mut buffer: BytesMut| {
            let message = frame::decode(&mut buffer, VALUE_MAX).expect("a frame");
            assert!(black_box(message).is_some());
        };
        b.iter_batched(|| bytes.clone(), decode, BatchSize::SmallInput);
    });
    group.finish();
}

fn directory(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("directory");
    for keys in KEYS {
        let mut directory = Directory::new(1);
        let names: Vec<_> = (0..keys).map(key).collect();
        for (seq, name) in names.iter().enumerate() {
            let holders = [Slot(0), Slot(1)].into_iter().collect();
            let version = Version::new(EPOCH, seq as u64);
            directory.insert(name, Entry { version, place: Place::default(), holders, expires: None });
        }
        // Far apart, as clients ask.
        let mut next = 0;
        group.bench_function(format!("find one of {keys}"), |b| {
            b.iter(|| {
                next = (next + 7_919) % keys;
                assert!(black_box(directory.get(&names[next])).is_some());
            });
        });
    }
    group.finish();
}

fn log(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("record");
    let write = Operation::Write(vec![(key(1), value())]);
    let mut out = Vec::new();
    group.bench_function("encode a write", |b| {
        b.iter(|| {
            out.clear();
            record::encode(black_box(&write), Seq(2), Epoch(EPOCH), Seq(1), &mut out);
        });
    });
    const RECORDS: u64 = 1_000;
    let mut text = Vec::new();
    record::encode(&Operation::Cluster(ClusterId(7)), Seq(1), Epoch(EPOCH), Seq(0), &mut text);
    (2..RECORDS + 2).for_each(|seq| record::encode(&write, Seq(seq), Epoch(EPOCH), Seq(seq - 1), &mut text));
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("scan 1,000 writes", |b| {
        b.iter(|| {
            let mut scanner = Scanner::new(line_bytes_max(VALUE_MAX));
            let (mut at, mut records) = (0, 0);
            while let Step::Record { .. } = scanner.next(black_box(&text[at..])) {
                at = scanner.position().offset as usize;
                records += 1;
            }
            assert_eq!(records, RECORDS + 1);
        });
    });
    group.finish();
}

fn master(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("master");
    for keys in KEYS {
        let mut cluster = Cluster::with_keys(keys);
        let names: Vec<_> = (0..keys).map(key).collect();
        let mut next = 0;
        group.bench_function(format!("read one of {keys}"), |b| {
            b.iter(|| {
                next = (next + 7_919) % keys;
                black_box(cluster.read(names[next].clone()))
            });
        });
        group.bench_function(format!("write one of {keys}"), |b| {
            b.iter(|| {
                next = (next + 7_919) % keys;
                black_box(cluster.write(names[next].clone()))
            });
        });
    }
    group.finish();
}

criterion_group!(hot_path, resp, frames, directory, log, master);
criterion_main!(hot_path);
