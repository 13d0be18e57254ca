//! What somebody probably meant who wrote a word that is not known.

/// The candidate that is nearest to a misspelt word, if one is near enough to be what was meant: up to one edit (insert,
/// remove, replace, swap of neighbours) in three letters.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let near_enough = (word.len() / 3).max(1);
    let distances = candidates.into_iter().filter_map(|candidate| {
        let letters: Vec<char> = candidate.to_lowercase().chars().collect();
        // The distance is at least the difference in length: most candidates need no look.
        let far = letters.len().abs_diff(word.len()) > near_enough;
        (!far).then(|| (distance(&word, &letters), candidate))
    });
    distances
        .filter(|(distance, _)| *distance <= near_enough)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Optimal string alignment.
fn distance(left: &[char], right: &[char]) -> usize {
    let width = right.len() + 1;
    // The last three rows of the table, newest last.
    let (mut before, mut last, mut row) = (vec![0; width], (0..width).collect::<Vec<_>>(), vec![0; width]);
    for (i, a) in left.iter().enumerate() {
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && Some(a) == right.get(j - 1) && left.get(i - 1) == Some(b) {
                best = best.min(before[j - 1] + 1);
            }
            row[j + 1] = best;
        }
        std::mem::swap(&mut before, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    last[width - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_word_is_found_and_a_far_one_is_not() {
        let words = ["windows", "linux", "process_creation", "cloudtrail", "aws"];
        for (word, wanted) in [
            ("window", Some("windows")),
            ("widnows", Some("windows")),
            ("Linux", Some("linux")),
            ("processcreation", Some("process_creation")),
            ("cloud-trail", Some("cloudtrail")),
            ("asw", Some("aws")),
            ("okta", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), wanted, "{word}");
        }
    }
}
