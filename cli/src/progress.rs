//! Progress for a person: a bar on a terminal, a line a second without one.
//!
//! Leaves to others: counting. Invariant: only bytes that the receiver has
//! acknowledged as landed are shown; nothing here knows of queued ones.

use crate::console::{Console, When};
use crate::size::{format_rate, format_seconds, format_size};
use haul_engine::Progress;
use haul_engine::options::CopyOptions;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;

/// Seconds between two lines where there is no terminal.
const LINE_SECONDS: f64 = 1.0;
/// The rate shown is that of about the last so many seconds.
const RATE_SECONDS: f64 = 3.0;

/// Below so many columns a bar says nothing that its figures do not.
const BAR_COLUMNS_MIN: u16 = 60;

/// What becomes of a file once all of it landed, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// It is synced, read back from its disk and renamed.
    Verifying,
    /// It is synced and renamed.
    Syncing,
    /// It is renamed.
    Placing,
}

impl Sealing {
    /// What `options` ask for.
    #[must_use]
    pub fn of(options: &CopyOptions) -> Self {
        match (options.verify, options.fsync) {
            (true, _) => Self::Verifying,
            (false, true) => Self::Syncing,
            (false, false) => Self::Placing,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Verifying => "verifying",
            Self::Syncing => "syncing",
            Self::Placing => "placing",
        }
    }
}

/// Shows how far a transfer is; dropping it takes the bar away.
pub struct Shown {
    console: Console,
    how: How,
    rate: ShownRate,
    sealing: Sealing,
    /// Since when all had landed, in seconds.
    sealing_since: Option<f64>,
}

/// In which form.
enum How {
    /// Not at all.
    Nothing,
    /// A bar that is drawn over and over, in the style that it has now.
    Bar(ProgressBar, Style),
    /// Lines; the field is when the next one is due, in seconds.
    Lines(f64),
}

/// What the bar looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// How far of how much, and a bar.
    Known,
    /// Bytes of a stream that has no known end.
    Unknown,
    /// A sentence alone: little room, or nothing that moves.
    Words,
}

impl Shown {
    /// Progress as `when` and `quiet` ask for it, of files that are then sealed as
    /// `sealing` says.
    #[must_use]
    pub fn new(console: &Console, when: When, quiet: bool, sealing: Sealing) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let how = match when {
            _ if quiet => How::Nothing,
            When::Never => How::Nothing,
            When::Auto if !terminal => How::Nothing,
            When::Always if !terminal => How::Lines(LINE_SECONDS),
            When::Auto | When::Always => {
                let bar =
                    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
                bar.set_style(style(Style::Unknown));
                console.set_bar(Some(bar.clone()));
                How::Bar(bar, Style::Unknown)
            }
        };
        Self {
            console: console.clone(),
            how,
            rate: ShownRate::default(),
            sealing,
            sealing_since: None,
        }
    }

    /// Shows `progress`.
    pub fn update(&mut self, progress: &Progress) {
        self.rate.add(progress.seconds, progress.landed_bytes);
        let rate = self.rate.bytes_per_second();
        let sealing = progress.is_sealing().then(|| {
            let since = *self.sealing_since.get_or_insert(progress.seconds);
            sealing_words(progress, self.sealing, progress.seconds - since)
        });
        let deleting = progress
            .deleted
            .map(|count| format!("deleting: {count} gone"));
        let sealing = deleting.or(sealing);
        if sealing.is_none() {
            self.sealing_since = None;
        }
        match &mut self.how {
            How::Nothing => {}
            How::Bar(bar, now) => {
                let wanted = match (&sealing, progress.planned_bytes) {
                    (None, Some(_)) if columns() >= BAR_COLUMNS_MIN => Style::Known,
                    (None, None) if columns() >= BAR_COLUMNS_MIN => Style::Unknown,
                    _ => Style::Words,
                };
                if *now != wanted {
                    *now = wanted;
                    bar.set_style(style(wanted));
                }
                match progress.planned_bytes {
                    Some(bytes) => bar.set_length(bytes),
                    None => bar.unset_length(),
                }
                bar.set_position(progress.landed_bytes);
                bar.set_message(match (sealing, wanted) {
                    (Some(words), _) => words,
                    (None, Style::Words) => short(progress, rate),
                    (None, _) => rate_and_rest(progress, rate),
                });
            }
            How::Lines(due) => {
                if progress.seconds >= *due {
                    *due = progress.seconds + LINE_SECONDS;
                    let text = sealing.map(|words| format!("haul: {words}"));
                    self.console
                        .line(&text.unwrap_or_else(|| line(progress, rate)));
                }
            }
        }
    }
}

/// "syncing: 3 of 40 files sealed, 2.1 s"
fn sealing_words(progress: &Progress, sealing: Sealing, seconds: f64) -> String {
    let word = sealing.word();
    let took = format_seconds(seconds);
    match progress.files {
        1 => format!("{word} {} for {took}", format_size(progress.landed_bytes)),
        files => format!(
            "{word}: {} of {files} files done, {took}",
            progress.ended_files
        ),
    }
}

/// What fits into little room, the most telling first: "45 %, 123 MB/s, 4.1 s left"
fn short(progress: &Progress, rate: Option<f64>) -> String {
    let far = match progress.planned_bytes {
        Some(planned) => format!("{:.0} %", share(progress.landed_bytes, planned)),
        None => format_size(progress.landed_bytes),
    };
    let Some(rate) = rate else { return far };
    let speed = format_rate(rate);
    let speed = speed.split(" (").next().unwrap_or_default();
    match left(progress, rate) {
        Some(left) => format!("{far}, {speed}, {left}"),
        None => format!("{far}, {speed}"),
    }
}

/// Columns of the terminal.
fn columns() -> u16 {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col)
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let How::Bar(bar, _) = &self.how {
            bar.finish_and_clear();
            self.console.set_bar(None);
        }
    }
}

/// The bar's form; what is too long for the terminal is cut.
fn style(style: Style) -> ProgressStyle {
    let template = match style {
        Style::Known => "{percent:>3} % {wide_bar} {binary_bytes} of {binary_total_bytes} {msg}",
        Style::Unknown => "{spinner} {binary_bytes} {wide_msg}",
        Style::Words => "{wide_msg}",
    };
    ProgressStyle::with_template(template)
        .expect("constant templates; see the test")
        .progress_chars("=> ")
}

/// "123 MB/s (117 MiB/s), 4.1 s left"; of a tree that is still read also how much of it
/// was found so far.
fn rate_and_rest(progress: &Progress, rate: Option<f64>) -> String {
    let found = progress.is_scanning().then(|| found(progress));
    let rate = rate.map(|rate| match left(progress, rate) {
        Some(left) => format!("{}, {left}", format_rate(rate)),
        None => format_rate(rate),
    });
    let parts: Vec<String> = found.into_iter().chain(rate).collect();
    parts.join(", ")
}

/// "of 1.2 GiB found so far, 345 of 5000 files"
fn found(progress: &Progress) -> String {
    format!(
        "of {} found so far, {} of {} files",
        format_size(progress.found_bytes),
        progress.ended_files,
        progress.files
    )
}

/// "4.1 s left"; nothing where no end is in sight.
fn left(progress: &Progress, rate: f64) -> Option<String> {
    let planned = progress.planned_bytes.filter(|_| rate > 0.0)?;
    let left = planned.saturating_sub(progress.landed_bytes) as f64 / rate;
    Some(format!("{} left", format_seconds(left)))
}

/// One line where there is no terminal.
fn line(progress: &Progress, rate: Option<f64>) -> String {
    let mut text = format!(
        "haul: {} landed",
        match progress.planned_bytes {
            Some(planned) => format!(
                "{} of {} ({:.0} %)",
                format_size(progress.landed_bytes),
                format_size(planned),
                share(progress.landed_bytes, planned)
            ),
            None => format_size(progress.landed_bytes),
        }
    );
    let rest = rate_and_rest(progress, rate);
    if !rest.is_empty() {
        text += &format!(", {rest}");
    }
    text
}

/// Percent of `whole`; nothing of nothing is all of it.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        100.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// The rate over the last seconds: old samples leave, so that a path that
/// changed is seen soon, and a burst of acknowledgements is not.
#[derive(Default)]
struct ShownRate {
    samples: VecDeque<(f64, u64)>,
}

impl ShownRate {
    /// `bytes` had landed after `seconds`.
    fn add(&mut self, seconds: f64, bytes: u64) {
        self.samples.push_back((seconds, bytes));
        while self.samples.len() > 2 && seconds - self.samples[1].0 > RATE_SECONDS {
            self.samples.pop_front();
        }
    }

    /// `None` until there is something to tell.
    fn bytes_per_second(&self) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        // With one sample the rate is that since the start.
        let (from_seconds, from_bytes) = if self.samples.len() > 1 {
            *first
        } else {
            (0.0, 0)
        };
        let seconds = last.0 - from_seconds;
        (seconds > 0.0).then(|| last.1.saturating_sub(from_bytes) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(seconds: f64, landed: u64, planned: Option<u64>) -> Progress {
        Progress {
            landed_bytes: landed,
            planned_bytes: planned,
            files: 1,
            ended_files: 0,
            seconds,
            ..Progress::default()
        }
    }

    /// What a terminal of so many columns shows of `progress`.
    fn drawn(columns: u16, style_now: Style, message: &str) -> String {
        let terminal = indicatif::InMemoryTerm::new(4, columns);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(200 << 20), target);
        bar.set_style(style(style_now));
        bar.set_position(100 << 20);
        bar.set_message(message.to_owned());
        bar.force_draw();
        terminal.contents()
    }

    #[test]
    fn each_style_draws_one_line_that_fits() {
        let moving = progress(1.0, 100 << 20, Some(200 << 20));
        let rate = Some(104_857_600.0);
        let wide = drawn(80, Style::Known, &rate_and_rest(&moving, rate));
        assert!(wide.starts_with(" 50 % ==="), "{wide}");
        assert!(
            wide.ends_with("100.00 MiB of 200.00 MiB 105 MB/s (100 MiB/s), 1.00 s left"),
            "{wide}"
        );
        let spinning = drawn(80, Style::Unknown, &rate_and_rest(&moving, rate));
        assert!(spinning.contains("100.00 MiB 105 MB/s"), "{spinning}");
        for columns in [59, 40, 20, 8] {
            let text = drawn(columns, Style::Words, &short(&moving, rate));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.chars().count() <= columns.into(), "{text}");
            assert!(
                "50 %, 105 MB/s, 1.00 s left".starts_with(text.trim_end()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_has_landed_and_is_not_sealed_is_said_to_be_so() {
        let mut sealing = progress(9.0, 1 << 20, Some(1 << 20));
        assert!(sealing.is_sealing());
        assert_eq!(
            sealing_words(&sealing, Sealing::Syncing, 2.0),
            "syncing 1 MiB for 2.00 s"
        );
        sealing.files = 40;
        sealing.ended_files = 3;
        assert_eq!(
            sealing_words(&sealing, Sealing::Verifying, 2.0),
            "verifying: 3 of 40 files done, 2.00 s"
        );
        sealing.ended_files = 40;
        assert!(!sealing.is_sealing());
        assert!(!progress(9.0, 5, Some(6)).is_sealing());
        assert!(!progress(9.0, 5, None).is_sealing(), "a stream may go on");
    }

    #[test]
    fn a_line_says_how_far_and_how_fast() {
        assert_eq!(
            line(
                &progress(1.0, 104_857_600, Some(209_715_200)),
                Some(104_857_600.0)
            ),
            "haul: 100 MiB of 200 MiB (50 %) landed, 105 MB/s (100 MiB/s), 1.00 s left"
        );
        assert_eq!(
            line(&progress(1.0, 1_024, None), None),
            "haul: 1 KiB landed"
        );
        assert_eq!(
            line(&progress(0.0, 0, Some(0)), None),
            "haul: 0 bytes of 0 bytes (100 %) landed"
        );
    }

    #[test]
    fn the_rate_forgets_the_past() {
        let mut rate = ShownRate::default();
        assert_eq!(rate.bytes_per_second(), None);
        rate.add(2.0, 200);
        assert_eq!(rate.bytes_per_second(), Some(100.0));
        for second in 3..=20_u32 {
            rate.add(f64::from(second), 180 + u64::from(second) * 10);
        }
        let now = rate.bytes_per_second().expect("a rate");
        assert!((9.0..11.0).contains(&now), "{now}");
    }

    #[test]
    fn a_tree_that_is_still_read_tells_what_was_found() {
        let mut tree = progress(2.0, 1 << 20, None);
        tree.files = 500;
        tree.ended_files = 20;
        tree.found_bytes = 3 << 20;
        let text = line(&tree, None);
        assert_eq!(
            text,
            "haul: 1 MiB landed, of 3 MiB found so far, 20 of 500 files"
        );
    }
}
