//! `haul clean`: removes temporary files that no running transfer holds.
//!
//! Leaves to others: which those are (the engine). Invariant: what goes is said,
//! and what could not be done is a failure of the command.

use crate::console::{Console, escaped, fault, require_output};
use crate::size::{format_size, parse_age};
use clap::Args;
use haul_engine::Error;
use haul_engine::files::clean::{CleanEvent, CleanOptions, Cleaned, clean};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Some files failed, the rest are done.
const PARTIAL: u8 = 23;

/// What it means.
pub const HELP: &str = "\
A transfer that is killed, or whose machine goes down, leaves its temporary files
(.haul- and 16 hexadecimal digits) beside its targets. A directory that was being
removed, as something took its place, has such a name, too, and goes with all that
is in it. Those that a running transfer writes to or removes are locked, and stay,
as does what something is mounted in. haul serve cleans below its root when it
starts.

Examples:
  haul clean --dry-run /srv/images
  haul clean --older-than 2d /srv/images";

/// `haul clean`.
#[derive(Debug, Args)]
pub struct CleanArguments {
    /// Where to look, and in all folders below
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only files that were not written to for AGE: 90s, 30min, 12h or 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub older_than: Option<Duration>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Stay on DIR's own file system
    #[arg(long)]
    pub one_file_system: bool,
    /// Write one JSON object to standard output instead of the names
    #[arg(long)]
    pub json: bool,
}

/// Runs `haul clean`; the exit code.
///
/// # Errors
/// DIR cannot be read, or standard output not be written to.
pub fn run(arguments: &CleanArguments, console: &Console) -> Result<u8, Error> {
    require_output("write the result to")?;
    let options = CleanOptions {
        older_than: arguments.older_than,
        dry_run: arguments.dry_run,
        one_file_system: arguments.one_file_system,
    };
    let mut unsaid = None;
    let cleaned = clean(&arguments.directory, options, |event| match event {
        CleanEvent::Removed(path, _) if !arguments.json && unsaid.is_none() => {
            unsaid = console.result(&escaped(&path)).err();
        }
        CleanEvent::Removed(..) => {}
        CleanEvent::Failed(error) => console.error(&error),
    })?;
    if let Some(error) = unsaid {
        return Err(error);
    }
    if arguments.json {
        console.result(&json(&cleaned, arguments.dry_run))?;
    }
    console.line(&format!("haul: {}", sentence(&cleaned, arguments.dry_run)));
    Ok(if cleaned.failed > 0 { PARTIAL } else { 0 })
}

/// Cleans below a server's root on a thread of its own, and logs what came of it.
pub fn in_background(root: &Path) {
    let root = root.to_owned();
    let options = CleanOptions {
        one_file_system: true,
        ..CleanOptions::default()
    };
    let work = move || {
        let mut first = None;
        let cleaned = clean(&root, options, |event| {
            if let CleanEvent::Failed(error) = event {
                first.get_or_insert(error);
            }
        });
        match cleaned {
            Ok(cleaned) if cleaned.removed > 0 => {
                tracing::info!("below the root: {}", sentence(&cleaned, false));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{error}"),
        }
        if let Some(error) = first {
            tracing::warn!("not everything below the root could be looked at: {error}");
        }
    };
    // What is left over costs space, not the service.
    if let Err(error) = std::thread::Builder::new()
        .name("haul-clean".to_owned())
        .spawn(work)
    {
        let error = fault("cannot clean below the root", error);
        tracing::warn!("{error}");
    }
}

/// What came of it.
fn sentence(cleaned: &Cleaned, dry_run: bool) -> String {
    let files = |count| match count {
        1 => "1 temporary file".to_owned(),
        _ => format!("{count} temporary files"),
    };
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text = format!("{verb} {}", files(cleaned.removed));
    if cleaned.removed > 0 {
        text += &format!(" of {}", format_size(cleaned.removed_bytes));
    }
    for (count, why) in [
        (cleaned.held, "in use"),
        (cleaned.younger, "too young"),
        (cleaned.failed, "failed"),
    ] {
        if count > 0 {
            text += &format!(", {count} {why}");
        }
    }
    text
}

fn json(cleaned: &Cleaned, dry_run: bool) -> String {
    serde_json::json!({
        "dry_run": dry_run,
        "removed": cleaned.removed,
        "removed_bytes": cleaned.removed_bytes,
        "held": cleaned.held,
        "younger": cleaned.younger,
        "failed": cleaned.failed,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_counts() {
        let cleaned = Cleaned {
            removed: 1,
            removed_bytes: 4096,
            held: 2,
            ..Cleaned::default()
        };
        assert_eq!(
            sentence(&cleaned, true),
            "would remove 1 temporary file of 4 KiB, 2 in use"
        );
        assert_eq!(
            sentence(&Cleaned::default(), false),
            "removed 0 temporary files"
        );
    }
}
