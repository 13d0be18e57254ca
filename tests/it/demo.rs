//! The demo itself runs: the story goes in, alerts fire, the three questions are answered.

use crate::server::tidegate;

#[test]
fn the_demo_shows_alerts_and_answers() {
    let output = tidegate(&["demo", "--fast", "--exit"]).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    for part in ["critical", "high", "What fired", "Which spend runs away?"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}\n{errors}");
    }
}
