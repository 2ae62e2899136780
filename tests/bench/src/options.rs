//! The command line.

use std::path::PathBuf;

pub(crate) const USAGE: &str =
    "usage: tests/bench/run [--quick] [--only NAME,...] [--rounds N] [--out FILE]";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Small images, few rounds: to see that all of it works.
    pub(crate) quick: bool,
    /// Some workloads instead of all.
    pub(crate) only: Vec<String>,
    pub(crate) rounds: Option<usize>,
    /// Where the page is written.
    pub(crate) out: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments; what is wrong with them otherwise.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--rounds" => {
                    let rounds = value()?.parse().ok().filter(|&rounds| rounds > 0);
                    options.rounds = Some(rounds.ok_or("--rounds takes a number from 1 on")?);
                }
                "--out" => options.out = Some(value()?.into()),
                other => return Err(format!("there is no option {other}")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn all_options() {
        let all =
            parse("--quick --only a,b --only c --rounds 7 --out x.md").expect("all are known");
        assert!(all.quick);
        assert_eq!(all.only, ["a", "b", "c"]);
        assert_eq!((all.rounds, all.out), (Some(7), Some("x.md".into())));
        for wrong in ["--fast", "--rounds", "--rounds 0", "--rounds x", "--out"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
