//! The file of hostile statements, read: for the crate of queries, and for the whole program.

/// The statements of the file, one a line after `verdict | `, with `{{text*count}}` for `count` times the text.
const STATEMENTS: &str = include_str!("../hostile.txt");

/// The verdict and the text of each statement, repetitions written out; `dir` is the folder with the canary.
pub fn statements(dir: &std::path::Path) -> impl Iterator<Item = (&'static str, String)> {
    let dir = dir.display().to_string();
    let lines = STATEMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(move |line| {
        let (verdict, sql) = line.split_once(" | ").expect("a verdict and a statement");
        (verdict, written(sql).replace("$DIR", &dir).replace("\\n", "\n").replace("\\0", "\0"))
    })
}

/// Writes out `{text*count}`.
fn written(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let (text, after) = after.split_once("}}").expect("a closed repetition");
        let (text, count) = text.rsplit_once('*').expect("a count");
        out.push_str(before);
        out.push_str(&text.repeat(count.parse().expect("a number")));
        rest = after;
    }
    out + rest
}
