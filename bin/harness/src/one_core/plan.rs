//! Which stores are measured under which loads, and in which order.
//!
//! It owns names and numbers and starts nothing.

use serde::{Deserialize, Serialize};

/// A store that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CoreStore {
    /// The build under test: a primary, a backup, 3 slaves.
    Build,
    /// The build that it is compared with, the same processes.
    Base,
    /// redis-server alone, nothing on disk.
    Redis,
    /// redis-server, `appendfsync always`, 2 replicas in memory, `WAIT 1` after each SET.
    RedisWait,
    /// valkey-server alone, nothing on disk.
    Valkey,
}

impl CoreStore {
    /// As the tables have it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            CoreStore::Build => "build",
            CoreStore::Base => "base",
            CoreStore::Redis => "redis",
            CoreStore::RedisWait => "redis always + WAIT 1",
            CoreStore::Valkey => "valkey",
        }
    }

    /// Replicas that each write waits for by a command of its own.
    pub(crate) fn wait(self) -> Option<u32> {
        (self == CoreStore::RedisWait).then_some(1)
    }
}

/// A load by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CoreLoad {
    /// Reads only, pipeline 1
    Reads,
    /// Reads only, pipeline 16
    #[value(name = "reads-16")]
    #[serde(rename = "reads-16")]
    Reads16,
    /// 30 % writes, pipeline 1
    Mixed,
    /// 30 % writes, pipeline 16
    #[value(name = "mixed-16")]
    #[serde(rename = "mixed-16")]
    Mixed16,
    /// Writes only, pipeline 1
    Writes,
    /// Reads only, 1 connection
    OneReader,
    /// Writes only, 1 connection
    OneWriter,
}

impl CoreLoad {
    /// All, in the order of the tables.
    pub(crate) const ALL: [CoreLoad; 7] = [
        CoreLoad::Reads,
        CoreLoad::Reads16,
        CoreLoad::Mixed,
        CoreLoad::Mixed16,
        CoreLoad::Writes,
        CoreLoad::OneReader,
        CoreLoad::OneWriter,
    ];

    /// Those whose ratios are the first to look at.
    pub(crate) const QUICK: [CoreLoad; 4] =
        [CoreLoad::Reads, CoreLoad::Reads16, CoreLoad::Mixed, CoreLoad::Mixed16];

    /// Its name on the command line and in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CoreLoad::Reads => "reads",
            CoreLoad::Reads16 => "reads-16",
            CoreLoad::Mixed => "mixed",
            CoreLoad::Mixed16 => "mixed-16",
            CoreLoad::Writes => "writes",
            CoreLoad::OneReader => "one-reader",
            CoreLoad::OneWriter => "one-writer",
        }
    }

    /// What it asks for; `connections` is for those that have many.
    pub(crate) fn shape(self, connections: u32) -> LoadShape {
        let of = |write_pct, connections, pipeline| LoadShape { write_pct, connections, pipeline };
        match self {
            CoreLoad::Reads => of(0, connections, 1),
            CoreLoad::Reads16 => of(0, connections, 16),
            CoreLoad::Mixed => of(30, connections, 1),
            CoreLoad::Mixed16 => of(30, connections, 16),
            CoreLoad::Writes => of(100, connections, 1),
            CoreLoad::OneReader => of(0, 1, 1),
            CoreLoad::OneWriter => of(100, 1, 1),
        }
    }
}

/// The keys and values of all loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadData {
    /// Different keys.
    pub keys: u32,
    /// Length of each value, at least [`super::answer::STAMP_BYTES`].
    pub value_bytes: usize,
}

/// The numbers of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadShape {
    /// Writes in percent of all operations.
    pub write_pct: u32,
    /// Connections.
    pub connections: u32,
    /// Requests in flight on each: that many are sent at once, and the next when all are answered.
    pub pipeline: u32,
}

/// The stores in the order in which they are measured under the load with number `load` of round `round`: over the rounds
/// each comes at each place as often as the others.
pub(crate) fn order(round: u32, load: usize, stores: &[CoreStore]) -> Vec<CoreStore> {
    let mut order = stores.to_vec();
    let by = (round as usize + load) % order.len().max(1);
    order.rotate_left(by);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn names_are_those_of_the_command_line_and_of_the_record() {
        for load in CoreLoad::ALL {
            let value = load.to_possible_value().unwrap();
            assert_eq!(value.get_name(), load.name());
            assert_eq!(serde_json::to_string(&load).unwrap(), format!("\"{}\"", load.name()));
        }
        assert_eq!(CoreLoad::ALL, CoreLoad::value_variants());
    }

    #[test]
    fn only_loads_of_many_connections_get_more() {
        let connections = CoreLoad::ALL.map(|load| load.shape(200).connections);
        assert_eq!(connections, [200, 200, 200, 200, 200, 1, 1]);
    }

    #[test]
    fn each_store_comes_at_each_place() {
        let stores = [CoreStore::Build, CoreStore::Base, CoreStore::Redis];
        let firsts: Vec<CoreStore> = (0..3).map(|round| order(round, 1, &stores)[0]).collect();
        assert_eq!(firsts, [CoreStore::Base, CoreStore::Redis, CoreStore::Build]);
        assert!(order(7, 0, &[]).is_empty());
    }
}
