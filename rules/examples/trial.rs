//! Trial: loads a rule folder and runs it over NDJSON files. Usage: trial DIR SOURCE FILE...
#[path = "../tests/it/flatten.rs"]
#[allow(dead_code)]
mod flatten;
use std::sync::Arc;
use std::time::Instant;
use tidegate_rules::*;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let config = RulesConfig::default();
    let mut folder = RuleFolder::new(&args[0], &config);
    folder.changed().unwrap();
    let (texts, skipped) = folder.read().unwrap();
    println!("files {} skipped {:?}", texts.len(), skipped);
    let files: Vec<RuleFile> = texts.into_iter().map(|(n, t)| RuleFile::new(n, t)).collect();
    let t = Instant::now();
    let (set, problems) = RuleSet::compile(&files, &config).unwrap();
    println!(
        "rules {} predicates {} problems {} in {:?}",
        set.rules().len(),
        set.predicates(),
        problems.len(),
        t.elapsed()
    );
    for p in &problems {
        println!("  {p}");
    }
    println!("unknown log sources: {:?}", set.unknown_log_sources());
    let t = Instant::now();
    let mut ev = Evaluator::new(Arc::new(set), &config);
    println!("evaluator {:?}", t.elapsed());
    if args.len() < 3 {
        return;
    }
    for file in &args[2..] {
        let lines: Vec<serde_json::Value> =
            std::fs::read_to_string(file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let batches: Vec<_> = lines.chunks(2000).map(|c| flatten::Events::security(&args[1], c).batch(0)).collect();
        for round in 0..3 {
            let t = Instant::now();
            let mut hits = std::collections::BTreeMap::<usize, usize>::new();
            let mut n = 0;
            for b in &batches {
                for (_, r) in ev.matches(b) {
                    *hits.entry(r).or_default() += 1;
                    n += 1;
                }
            }
            let e = t.elapsed();
            println!(
                "round {round}: {} events {n} matches in {e:?} = {:.0} ev/s; {:?} remembered {}",
                lines.len(),
                lines.len() as f64 / e.as_secs_f64(),
                ev.counts(),
                ev.remembered()
            );
            if round == 0 {
                for (r, c) in &hits {
                    println!("  {c:6} {} [{}]", ev.rules().rules()[*r].title, ev.rules().rules()[*r].file);
                }
            }
        }
    }
    println!("parked {:?}", ev.parked());
}
