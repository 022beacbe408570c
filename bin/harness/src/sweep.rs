//! Grids of settings: the spelling of `--sweep`, and all points of a grid in order.
//!
//! `slaves=1..9`, `clients=1,2,5`, `value-bytes=64,1024..1026`

use super::record::LoadSettings;
use std::fmt;
use std::str::FromStr;

/// How many values one dimension has, and how many points a grid, at most.
const VALUES_MAX: usize = 1000;

/// What can be varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// `--slaves`
    Slaves,
    /// `--clients`
    Clients,
    /// `--pool`
    Pool,
    /// `--pipeline`
    Pipeline,
    /// `--write-pct`
    WritePct,
    /// `--value-bytes`
    ValueBytes,
}

impl Name {
    const ALL: [(&'static str, Name); 6] = [
        ("slaves", Name::Slaves),
        ("clients", Name::Clients),
        ("pool", Name::Pool),
        ("pipeline", Name::Pipeline),
        ("write-pct", Name::WritePct),
        ("value-bytes", Name::ValueBytes),
    ];

    /// The smallest and the largest value.
    fn bounds(self) -> (u32, u32) {
        match self {
            Name::Slaves => (1, 64),
            Name::Clients | Name::Pool | Name::Pipeline => (1, 10_000),
            Name::WritePct => (0, 100),
            Name::ValueBytes => (1, 512 * 1024 * 1024),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Name::ALL.iter().find(|(_, name)| name == self);
        f.write_str(found.map_or("", |(text, _)| text))
    }
}

/// One `--sweep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dimension {
    pub name: Name,
    pub values: Vec<u32>,
}

impl FromStr for Dimension {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, values) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUES, as in slaves=1..9"))?;
        let found = Name::ALL.iter().find(|(known, _)| *known == name.trim());
        let Some((_, name)) = found else {
            let known: Vec<_> = Name::ALL.iter().map(|(text, _)| *text).collect();
            return Err(format!("{name:?} cannot be varied: one of {}", known.join(", ")));
        };
        let (least, most) = name.bounds();
        let number = |text: &str| {
            let number: u32 = text.trim().parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            if (least..=most).contains(&number) {
                Ok(number)
            } else {
                Err(format!("{name} must be from {least} to {most}, not {number}"))
            }
        };
        let mut all = Vec::new();
        for part in values.split(',') {
            match part.split_once("..") {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                    if first > last {
                        return Err(format!("{part:?} has no values"));
                    }
                    all.extend((first..=last).take(VALUES_MAX + 1));
                }
                None => all.push(number(part)?),
            }
            if all.len() > VALUES_MAX {
                return Err(format!("{name} has more than {VALUES_MAX} values"));
            }
        }
        Ok(Dimension { name: *name, values: all })
    }
}

/// All points of the grid, the first dimension varying slowest. Without dimensions: `base` alone.
///
/// # Errors
/// A dimension that is named twice, or too many points.
pub(crate) fn grid(dimensions: &[Dimension], base: &LoadSettings) -> Result<Vec<LoadSettings>, String> {
    let mut points = vec![base.clone()];
    for (index, dimension) in dimensions.iter().enumerate() {
        if dimensions[..index].iter().any(|other| other.name == dimension.name) {
            return Err(format!("--sweep {} is given twice", dimension.name));
        }
        if points.len() * dimension.values.len() > VALUES_MAX {
            return Err(format!("--sweep: the grid has more than {VALUES_MAX} points"));
        }
        points = points
            .iter()
            .flat_map(|point| dimension.values.iter().map(|value| varied(point, dimension.name, *value)))
            .collect();
    }
    Ok(points)
}

fn varied(point: &LoadSettings, name: Name, value: u32) -> LoadSettings {
    let mut point = point.clone();
    match name {
        Name::Slaves => point.slaves = value,
        Name::Clients => point.clients = value,
        Name::Pool => point.pool = value,
        Name::Pipeline => point.pipeline = value,
        Name::WritePct => point.write_pct = f64::from(value),
        Name::ValueBytes => point.value_bytes = value,
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_both_ends_and_mix_with_lists() {
        let dimension: Dimension = "clients=1,2,5..7".parse().unwrap();
        assert_eq!(dimension, Dimension { name: Name::Clients, values: vec![1, 2, 5, 6, 7] });
        assert_eq!("slaves=1..=3".parse::<Dimension>().unwrap().values, [1, 2, 3]);
        assert_eq!("write-pct=0,100".parse::<Dimension>().unwrap().name, Name::WritePct);
    }

    #[test]
    fn what_is_no_dimension_is_refused_with_a_reason() {
        for (text, reason) in [
            ("slaves", "NAME=VALUES"),
            ("colour=1", "cannot be varied"),
            ("slaves=", "whole number"),
            ("slaves=1,,2", "whole number"),
            ("slaves=3..1", "no values"),
            ("slaves=0", "from 1 to 64"),
            ("slaves=65", "from 1 to 64"),
            ("value-bytes=1..1000000", "more than 1000"),
            ("clients=1.5", "whole number"),
        ] {
            let error = text.parse::<Dimension>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_grid_has_every_combination_the_first_dimension_slowest() {
        let dimensions: Vec<Dimension> =
            ["slaves=1,2", "clients=5..7"].iter().map(|text| text.parse().unwrap()).collect();
        let base = LoadSettings { pool: 10, ..LoadSettings::default() };
        let points = grid(&dimensions, &base).unwrap();
        let told: Vec<_> = points.iter().map(|point| (point.slaves, point.clients, point.pool)).collect();
        assert_eq!(told, [(1, 5, 10), (1, 6, 10), (1, 7, 10), (2, 5, 10), (2, 6, 10), (2, 7, 10)]);
        assert_eq!(grid(&[], &base).unwrap(), [base]);
    }

    #[test]
    fn a_dimension_given_twice_and_a_grid_too_large_are_refused() {
        let dimension = |text: &str| text.parse::<Dimension>().unwrap();
        let base = LoadSettings::default();
        assert!(grid(&[dimension("slaves=1"), dimension("slaves=2")], &base).is_err());
        assert!(grid(&[dimension("clients=1..100"), dimension("pool=1..100")], &base).is_err());
    }
}
