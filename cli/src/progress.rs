//! Progress for a person: a bar on a terminal, a line a second without one.
//!
//! Leaves to others: counting. Invariant: only bytes that the receiver has
//! acknowledged as landed are shown; nothing here knows of queued ones.

use crate::console::{Console, When};
use crate::size::{format_rate, format_seconds, format_size};
use haul_engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;

/// Seconds between two lines where there is no terminal.
const LINE_SECONDS: f64 = 1.0;
/// The rate shown is that of about the last so many seconds.
const RATE_SECONDS: f64 = 3.0;

/// Shows how far a transfer is; dropping it takes the bar away.
pub struct Shown {
    console: Console,
    how: How,
    rate: Rate,
}

/// In which form.
enum How {
    /// Not at all.
    Nothing,
    /// A bar that is drawn over and over.
    Bar(ProgressBar),
    /// Lines; the field is when the next one is due, in seconds.
    Lines(f64),
}

impl Shown {
    /// Progress as `when` and `quiet` ask for it.
    #[must_use]
    pub fn new(console: &Console, when: When, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let how = match when {
            _ if quiet => How::Nothing,
            When::Never => How::Nothing,
            When::Auto if !terminal => How::Nothing,
            When::Always if !terminal => How::Lines(LINE_SECONDS),
            When::Auto | When::Always => {
                let bar =
                    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
                bar.set_style(style(false));
                console.set_bar(Some(bar.clone()));
                How::Bar(bar)
            }
        };
        Self {
            console: console.clone(),
            how,
            rate: Rate::default(),
        }
    }

    /// Shows `progress`.
    pub fn update(&mut self, progress: &Progress) {
        self.rate.add(progress.seconds, progress.landed_bytes);
        let rate = self.rate.bytes_per_second();
        match &mut self.how {
            How::Nothing => {}
            How::Bar(bar) => {
                if bar.length() != progress.planned_bytes {
                    bar.set_style(style(progress.planned_bytes.is_some()));
                    match progress.planned_bytes {
                        Some(bytes) => bar.set_length(bytes),
                        None => bar.unset_length(),
                    }
                }
                bar.set_position(progress.landed_bytes);
                bar.set_message(rate_and_rest(progress, rate));
            }
            How::Lines(due) => {
                if progress.seconds >= *due {
                    *due = progress.seconds + LINE_SECONDS;
                    self.console.line(&line(progress, rate));
                }
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
            self.console.set_bar(None);
        }
    }
}

/// The bar's form, with or without a known end.
fn style(known: bool) -> ProgressStyle {
    let template = if known {
        "{percent:>3} % {wide_bar} {binary_bytes} of {binary_total_bytes} {msg}"
    } else {
        "{spinner} {binary_bytes} {msg}"
    };
    ProgressStyle::with_template(template)
        .expect("constant templates; see the test")
        .progress_chars("=> ")
}

/// "123 MB/s (117 MiB/s), 4.1 s left"
fn rate_and_rest(progress: &Progress, rate: Option<f64>) -> String {
    let Some(rate) = rate else {
        return String::new();
    };
    let mut text = format_rate(rate);
    if let (Some(planned), true) = (progress.planned_bytes, rate > 0.0) {
        let left = planned.saturating_sub(progress.landed_bytes) as f64 / rate;
        text += &format!(", {} left", format_seconds(left));
    }
    text
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
struct Rate {
    samples: VecDeque<(f64, u64)>,
}

impl Rate {
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
            seconds,
            connections: Vec::new(),
        }
    }

    #[test]
    fn both_styles_are_templates() {
        style(true);
        style(false);
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
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(), None);
        rate.add(2.0, 200);
        assert_eq!(rate.bytes_per_second(), Some(100.0));
        for second in 3..=20_u32 {
            rate.add(f64::from(second), 180 + u64::from(second) * 10);
        }
        let now = rate.bytes_per_second().expect("a rate");
        assert!((9.0..11.0).contains(&now), "{now}");
    }
}
