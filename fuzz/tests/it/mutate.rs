//! Mutations that know nothing of what they change: bits, bytes, pieces, words of the target's tongue, numbers at their bounds.

/// A small generator of numbers, for replay (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> Option<&'a T> {
        from.get(self.below(from.len())).copied()
    }

    /// A range within `len`, mostly short.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        let most = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        start..start + self.below(most + 1)
    }
}

/// Longest input.
const BYTES_MAX: usize = 64 << 10;

/// Words that mean something to some target.
pub fn words(target: &str) -> &'static [&'static str] {
    match target {
        "json_body" => &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u0000",
            "\\ud800",
            "\n",
            "\r\n",
            "\u{feff}",
            "null",
            "1e400",
            "-0",
            "{\"events\":[",
            "{\"Records\":[",
            "\"_rest\":",
            "\"raw.time\":",
            "\"time\":",
            "\"event_id\":",
            "\"n\":{\"n\":",
            "true",
            "\"a.b\":1,\"a\":{\"b\":2}",
            "[[",
            "[{\"x\":1},{}]",
            "18446744073709551616",
            "\"\":",
        ],
        "csv_body" => &[
            ",",
            "\"",
            "\"\"",
            "\n",
            "\r\n",
            "\r",
            "BilledCost",
            "ChargePeriodStart",
            "Tags",
            "{\"a\":1}",
            "1e5",
            "-0.000001",
            "99999999999999999999999999999999999999",
            "2024-02-30",
            "\u{feff}",
            ",,,,,,",
        ],
        "arrow_body" | "fluvio_record" | "log_segment" => {
            &["\u{0}\u{0}\u{0}\u{0}", "TGF1", "TIDELOG1", "\u{1}\u{0}\u{0}\u{0}", "\u{7f}\u{7f}\u{7f}\u{7f}"]
        }
        "database_value" => &[
            "\u{1}",
            "\u{1}{}",
            "\u{1}[1,2.5,\"x\"]",
            "\u{1}[null,[1],{\"a\":1}]",
            "\u{1}\"\\ud800\"",
            "1e999",
            "-0.0",
            "9223372036854775808",
            "\u{0}\u{0}\u{0}\u{1}",
            "\u{0}\u{0}\u{0}\u{19}",
            "\u{7f}\u{7f}",
            "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
        ],
        "rule_text" => &[
            "|contains",
            "|re",
            "|cidr",
            "|base64offset",
            "|all",
            "|windash",
            "|expand",
            "|fieldref",
            "|gt",
            "|exists",
            "*",
            "?",
            "\\",
            "1 of them",
            "all of s*",
            " and ",
            " or ",
            "not ",
            "(",
            ")",
            "\n  ",
            "- ",
            "&a ",
            "*a",
            "<<: ",
            "---\n",
            "!!binary ",
            "\"",
            "'",
            "null",
            "{",
            "}",
            "[",
            "]",
            "(?i)",
            "(a{100}){100}",
            "%x%",
            "condition: ",
            "keywords",
            "~",
            "2024-01-01",
            "0x10",
            ".inf",
            "correlation:",
            "filter:",
            "timeframe: 5m",
            "fields:",
            "|utf16le",
            "|cased",
        ],
        "sql_gate" => &[
            "SELECT ",
            " FROM ",
            "(",
            ")",
            " AND ",
            " OR ",
            "NOT ",
            "WITH x AS ",
            " UNION ALL ",
            ";",
            "--",
            "/*",
            "*/",
            "'",
            "\"",
            "$$",
            "E'",
            "INSERT INTO ",
            "COPY ",
            "EXPLAIN ",
            "CASE WHEN ",
            " END",
            "::",
            "[",
            "]",
            "INTERVAL '1'",
            "*",
            "$1",
            "SHOW TABLES",
            "DESCRIBE ",
            "VALUES (1)",
            " INTO t ",
            "TABLE alerts",
            "ANALYZE ",
            "@@",
            "U&'",
            "x'",
            "INSERT OVERWRITE",
            "||",
            "->",
            " BETWEEN ",
            " IS NOT NULL",
            " WHERE ",
            "{fn ",
            "FOR UPDATE",
            "CALL f()",
        ],
        "configuration" | "mapping_file" => &[
            "[",
            "]",
            "[[",
            "]]",
            "=",
            "\"",
            "'",
            "\"\"\"",
            "'''",
            "\n",
            "{",
            "}",
            "#",
            "true",
            "inf",
            "nan",
            "0x",
            "1_000",
            ".",
            "[recognise]",
            "[columns]",
            "time",
            "template",
            "{}",
            "const",
            "when",
            "unless",
            "map",
            "as",
            "ids",
            "\n---\n",
            "1979-05-27T07:32:00Z",
            "listen",
            "parquet.",
            "log_store",
            "\"127.0.0.1:0\"",
            "focus_columns = true",
            "dataset",
        ],
        "parquet_manifest" => &[
            "\"why\":",
            "\"commit\"",
            "\"compact\"",
            "\"retain\"",
            "\"quarantine\"",
            "\"added\":[",
            "\"removed\":[",
            "null",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"rows\":",
            "\"id\":",
            "\"state\":null",
            "\"previous\":null",
            "-1",
            "18446744073709551615",
            "\"next_file\":",
            "\"alerts\"",
            "\"security_events\"",
            "9223372036854775807",
        ],
        "feed_filter" => &[
            "\"level\":",
            "\"rule\":",
            "\"tag\":",
            "\"entity\":",
            "\"high\"",
            "\"\"",
            "{",
            "}",
            ",",
            "null",
            "\\u0000",
        ],
        "query_string" => {
            &["&", "=", "%", "%00", "%ff", "%C3%A9", "+", "source", "ack", "limit", "dataset", "%%", "&&"]
        }
        "values" => &[
            "e",
            "E-",
            ".",
            "-",
            "+",
            "T",
            "Z",
            " ",
            ":",
            "[",
            "]",
            "2024-02-29",
            "23:59:60",
            "999999999999999",
            "+0000",
            "\u{1}",
        ],
        _ => &["\u{1f}\u{8b}\u{8}"],
    }
}

const TEXT_NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "1e308",
    "-1e-400",
];
const NUMBERS: &[u64] =
    &[0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// An input made of a seed and, at times, of a second one.
pub fn mutant(dice: &mut Dice, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let at = dice.below(seeds.len());
    let mut bytes = seeds.get(at).cloned().unwrap_or_default();
    for _ in 0..=dice.below(6) {
        let other = dice.below(seeds.len());
        change(dice, &mut bytes, seeds.get(other).map(Vec::as_slice).unwrap_or_default(), words);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn change(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let len = bytes.len();
    let at = dice.below(len + 1);
    match dice.below(12) {
        0 if len > 0 => bytes[at.min(len - 1)] ^= 1 << dice.below(8),
        1 if len > 0 => bytes[at.min(len - 1)] = dice.next() as u8,
        2 => {
            if dice.below(4) == 0 {
                bytes.truncate(at);
            } else {
                drop(bytes.drain(dice.range(len)));
            }
        }
        3 => {
            // A splice: the start of one, the end of another.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[dice.below(other.len() + 1)..]);
        }
        4 => {
            let piece = other[dice.range(other.len())].to_vec();
            drop(bytes.splice(at..at, piece));
        }
        5 => {
            // The same piece again, at times very often.
            let piece = bytes[dice.range(len)].to_vec();
            let often = if dice.below(8) == 0 { 1 + dice.below(2000) } else { 1 + dice.below(3) };
            let often = often.min(BYTES_MAX / piece.len().max(1));
            drop(bytes.splice(at..at, piece.repeat(often)));
        }
        6..=8 => {
            let word = dice.pick(words).unwrap_or_default();
            let over = if dice.below(2) == 0 { (at + word.len()).min(len) } else { at };
            let often = if dice.below(20) == 0 { 1 + dice.below(3000) } else { 1 };
            drop(bytes.splice(at..over, word.repeat(often).into_bytes()));
        }
        9 => {
            let number = NUMBERS[dice.below(NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][dice.below(4)];
            // Most formats align what they measure.
            let at = if dice.below(2) == 0 { at } else { at / 4 * 4 };
            let over = (at + width).min(len);
            drop(bytes.splice(at..over, number[..width].iter().copied()));
        }
        10 => {
            // A number that stands there in digits.
            let start = (at..len).find(|at| bytes[*at].is_ascii_digit()).unwrap_or(at);
            let end = (start..len).find(|at| !bytes[*at].is_ascii_digit()).unwrap_or(len);
            let number = dice.pick(TEXT_NUMBERS).unwrap_or_default();
            drop(bytes.splice(start.min(end)..end, number.bytes()));
        }
        _ => {
            let from = dice.range(len);
            let piece: Vec<u8> = bytes.drain(from).collect();
            let at = dice.below(bytes.len() + 1);
            drop(bytes.splice(at..at, piece));
        }
    }
}
