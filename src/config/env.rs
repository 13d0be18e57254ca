//! The one place that reads the environment of the process.

use std::path::PathBuf;

use super::raw::CONFIG_FILE_ENV;

/// All variables whose names and values are UTF-8. Others cannot be ours: all of our names and values are text.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The configuration file that the environment names.
pub fn config_file() -> Option<PathBuf> {
    std::env::var_os(CONFIG_FILE_ENV).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Where programs keep state that should survive a restart but is not worth a backup (XDG base directories, 0.8):
/// `$XDG_STATE_HOME/tidegate`, or `~/.local/state/tidegate`, or the folder for temporary files.
pub fn state_dir() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("tidegate")
}

/// Whether the user asked for no colour (no-color.org): any value that is not empty.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
