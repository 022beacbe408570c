//! Log filters: `info,dsm::client=debug`. An unknown word is refused: the logger would take it for a module, and silence
//! everything else.

/// Reads a filter and gives it back as the logger understands it.
///
/// # Errors
/// The unknown part.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
        let (module, level) = match part.split_once('=') {
            Some((module, word)) => {
                (Some(module.trim()), Some(level(word.trim()).ok_or_else(|| no_level(word))?))
            }
            None => match level(part) {
                Some(level) => (None, Some(level)),
                // All lines of a module.
                None if part.contains("::") || part.starts_with("dsm") => (Some(part), None),
                None => return Err(no_level(part)),
            },
        };
        if module.is_some_and(|module| !is_module(module)) {
            return Err(format!("{part:?} is not MODULE=LEVEL"));
        }
        Ok(match (module, level) {
            (Some(module), Some(level)) => format!("{module}={level}"),
            (Some(only), None) | (None, Some(only)) => only.to_owned(),
            (None, None) => String::new(),
        })
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() {
        return Err(no_level(text));
    }
    Ok(parts.join(","))
}

fn no_level(word: &str) -> String {
    format!("{word:?} is no level: there are off, error, warn, info, debug and trace")
}

fn is_module(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || "_:-".contains(letter))
}

fn level(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "off" | "none" => "off",
        "error" | "err" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_taken_as_people_write_them() {
        for (text, filter) in [
            ("info", "info"),
            ("WARNING", "warn"),
            (" warn , dsm::client = Debug", "warn,dsm::client=debug"),
            ("off", "off"),
            ("dsm::env,error", "dsm::env,error"),
            ("hyper=off,", "hyper=off"),
        ] {
            assert_eq!(parse(text), Ok(filter.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_word_that_would_silence_everything_is_refused() {
        let levels = "is no level: there are off, error, warn, info, debug and trace";
        for (text, why) in [
            ("verbose", format!("\"verbose\" {levels}")),
            ("dsm::client=loud", format!("\"loud\" {levels}")),
            ("info,2", format!("\"2\" {levels}")),
            ("", format!("\"\" {levels}")),
            ("=info", "\"=info\" is not MODULE=LEVEL".to_owned()),
            ("info/regex", format!("\"info/regex\" {levels}")),
        ] {
            assert_eq!(parse(text), Err(why), "{text:?}");
        }
    }
}
