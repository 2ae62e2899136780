//! The same view read again, each time opened anew: what was kept from the first time.

use super::Run;
use crate::goals;
use crate::reader;
use crate::results::{Row, Series, Unit};
use crate::servers::Who;

const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Nbd, Who::RawFile, Who::OursCached];

pub(super) fn again(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    run.check(&image, WHOS);
    let [second, third] = run.measure("again", WHOS, |who| {
        let server = run.start(who, &image);
        let read = || {
            let (bytes, took) =
                reader::sequential(&server.view, 1 << 20).expect("the view can be read");
            bytes as f64 / took.as_secs_f64() / 1e9
        };
        read();
        [read(), read()]
    });
    let row = |label: &str, series: Vec<Series>, goals| Row {
        label: label.to_owned(),
        unit: Unit::GigabytesPerSecond,
        series,
        goals,
    };
    vec![
        row("second read of the same view", second, goals::AGAIN),
        row("third read of the same view", third, goals::NONE),
    ]
}
