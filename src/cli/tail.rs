//! `tidegate tail`: follows alerts as they fire.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use super::feed::{Fired, Follower};
use super::style::{Style, clean, cut};
use crate::config::Config;

/// Follows until it is interrupted.
///
/// # Errors
/// When the server refuses, or the alerts cannot be written.
pub async fn run(config: &Config, style: Style, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    let after = match config.tail.after {
        Some(after) => u64::try_from(after).ok(),
        None => Follower::newest(&config.client).await?,
    };
    let mut follower = Follower::new(&config.client, config.tail.level.as_deref(), after)?;
    let mut lost = |why: &str, pause: Duration| {
        // Standard error may be closed; alerts go on all the same.
        let _ = writeln!(std::io::stderr(), "{}; trying again in {:.1} s", clean(why), pause.as_secs_f32());
    };
    loop {
        let fired = tokio::select! {
            fired = follower.next(&mut lost) => fired?,
            signal = tokio::signal::ctrl_c() => {
                follower.close().await;
                return Ok(signal?);
            }
        };
        if config.tail.json {
            writeln!(out, "{}", json!({"seq": fired.seq, "alert": fired.alert}))?;
        } else {
            writeln!(out, "{}", line(&fired, style))?;
        }
        out.flush()?;
    }
}

/// An alert in one line: when, how grave, what, and about whom.
pub fn line(fired: &Fired, style: Style) -> String {
    let when = fired.text("last_time");
    let when = when.split_once('.').map_or(when.trim_end_matches('Z'), |(seconds, _)| seconds).replace('T', " ");
    let about = ["actor", "asset", "resource"].map(|name| fired.text(name));
    let about: Vec<&str> = about.into_iter().filter(|text| !text.is_empty()).collect();
    format!(
        "{} {} {} {}",
        style.faint(&clean(&when)),
        style.level(fired.text("level")),
        style.bold(&cut(fired.text("title"), 80)),
        cut(&about.join(" · "), 120),
    )
    .trim_end()
    .to_owned()
}
