//! The metrics of this crate: a closed set, per batch.

/// (name, kind, help) of each.
pub const NAMES: &[(&str, &str, &str)] = &[
    (LOADED, "gauge", "Rules that are loaded"),
    (PROBLEMS, "gauge", "Rules that could not be loaded"),
    (PREDICATES, "gauge", "Distinct predicates of all loaded rules"),
    (PARKED, "gauge", "Rules, filters and correlations that were parked because they took too much time, or panicked"),
    (PANICS, "counter", "Rules, filters and correlations that were parked because they panicked"),
    (UNEVALUATED, "counter", "Events that no rule was evaluated on because that panicked, whatever rules ran"),
    (ROWS, "counter", "Events that rules looked at"),
    (VALUES, "counter", "Field values that were looked up in the memo"),
    (DECIDED, "counter", "Field values that were not in the memo and were decided"),
    (CANDIDATES, "counter", "Rules whose witness was found, per batch"),
    (FILTERED, "counter", "Matches that a filter took away"),
    (REMEMBERED, "gauge", "Field values in the memo"),
    (ALERTS, "counter", "Alerts raised"),
    (FOLDED, "counter", "Matches counted in another alert because a rule reached alerts_per_second_max"),
    (SUPPRESSED, "counter", "Matches counted in a window because their group was raised shortly before"),
    (EVICTED, "counter", "Windows closed early because of suppress_groups_max or suppress_bytes_max"),
    (SILENCED, "counter", "Matches that raised nothing because people silenced the rule or its group"),
    (WINDOWS, "gauge", "Groups whose further matches are counted"),
    (WINDOW_BYTES, "gauge", "Memory of the groups whose further matches are counted"),
    (SILENCES, "gauge", "Silences in force"),
    (CORRELATION_GROUPS, "gauge", "Groups that correlations remember"),
    (CORRELATION_BYTES, "gauge", "Memory of the groups that correlations remember"),
    (CORRELATION_FIRED, "counter", "Windows of correlations that satisfied their condition"),
    (CORRELATION_CLOSED, "counter", "Windows of correlations that were decided when they were over"),
    (CORRELATION_LATE, "counter", "Matches that correlations did not count because the event came too late"),
    (CORRELATION_UNGROUPED, "counter", "Matches that correlations did not count because a field was missing"),
    (CORRELATION_DROPPED, "counter", "Events that were forgotten because of correlation_group_events_max"),
    (CORRELATION_EVICTED, "counter", "Groups forgotten because of correlation_groups_max or correlation_bytes_max"),
    (
        CORRELATION_UNJUDGED,
        "counter",
        "Windows of correlations that were not judged because too many overlap, or because a percentile would have taken too long",
    ),
    (
        CORRELATION_BOUNDED,
        "counter",
        "Events that met a bound of correlations which is no setting, by `bound`: of `tenants` past 100000, which are not counted; of `sources` past 64 of a tenant, which are taken for one; in groups whose `sets` of sources were past 64 of a tenant, which wait for all of its sources",
    ),
    (CORRELATION_STEPS, "counter", "Events and steps of indexes that were looked at to judge windows of correlations"),
    (
        CORRELATION_UNSAVED,
        "counter",
        "Groups of correlations that a checkpoint did not keep because of state_bytes_max",
    ),
    (
        REFUSED_CHANGES,
        "counter",
        "Rule changes that were not taken because of files_bytes_max or tenant_files_bytes_max",
    ),
    (BATCH_SECONDS, "histogram", "Time to evaluate one batch"),
    (COMPILE_SECONDS, "histogram", "Time to compile all rules after a change"),
];

/// Rules that are loaded.
pub const LOADED: &str = "tidegate_rules_loaded";
/// Rules that could not be loaded.
pub const PROBLEMS: &str = "tidegate_rules_problems";
/// Distinct predicates of all loaded rules.
pub const PREDICATES: &str = "tidegate_rules_predicates";
/// Rules, filters and correlations that were parked.
pub const PARKED: &str = "tidegate_rules_parked";
/// Those that panicked.
pub const PANICS: &str = "tidegate_rules_panics_total";
/// Events that could not be evaluated.
pub const UNEVALUATED: &str = "tidegate_rules_unevaluated_rows_total";
/// Events that rules looked at.
pub const ROWS: &str = "tidegate_rules_rows_total";
/// Field values that were looked up.
pub const VALUES: &str = "tidegate_rules_values_total";
/// Field values that were decided.
pub const DECIDED: &str = "tidegate_rules_decided_values_total";
/// Rules whose witness was found.
pub const CANDIDATES: &str = "tidegate_rules_candidates_total";
/// Matches that a filter took away.
pub const FILTERED: &str = "tidegate_rules_filtered_matches_total";
/// Field values in the memo.
pub const REMEMBERED: &str = "tidegate_rules_remembered_values";
/// Alerts raised.
pub const ALERTS: &str = "tidegate_rules_alerts_total";
/// Matches folded into earlier alerts.
pub const FOLDED: &str = "tidegate_rules_folded_matches_total";
/// Matches counted in a window.
pub const SUPPRESSED: &str = "tidegate_rules_suppressed_matches_total";
/// Windows closed early.
pub const EVICTED: &str = "tidegate_rules_evicted_windows_total";
/// Matches that people silenced.
pub const SILENCED: &str = "tidegate_rules_silenced_matches_total";
/// Groups whose further matches are counted.
pub const WINDOWS: &str = "tidegate_rules_suppression_groups";
/// Their memory.
pub const WINDOW_BYTES: &str = "tidegate_rules_suppression_bytes";
/// Silences in force.
pub const SILENCES: &str = "tidegate_rules_silences";
/// Groups that correlations remember.
pub const CORRELATION_GROUPS: &str = "tidegate_rules_correlation_groups";
/// Their memory.
pub const CORRELATION_BYTES: &str = "tidegate_rules_correlation_bytes";
/// Windows that satisfied their condition.
pub const CORRELATION_FIRED: &str = "tidegate_rules_correlation_fired_windows_total";
/// Windows that were decided when they were over.
pub const CORRELATION_CLOSED: &str = "tidegate_rules_correlation_closed_windows_total";
/// Matches that came too late.
pub const CORRELATION_LATE: &str = "tidegate_rules_correlation_late_matches_total";
/// Matches without a field.
pub const CORRELATION_UNGROUPED: &str = "tidegate_rules_correlation_ungrouped_matches_total";
/// Events that were forgotten because their group has too many.
pub const CORRELATION_DROPPED: &str = "tidegate_rules_correlation_dropped_events_total";
/// Groups that were forgotten because there are too many.
pub const CORRELATION_EVICTED: &str = "tidegate_rules_correlation_evicted_groups_total";
/// Windows that were not judged.
pub const CORRELATION_UNJUDGED: &str = "tidegate_rules_correlation_unjudged_windows_total";
/// Events that met a bound which is no setting, by `bound`.
pub const CORRELATION_BOUNDED: &str = "tidegate_rules_correlation_bounded_events_total";
/// What was looked at to judge windows.
pub const CORRELATION_STEPS: &str = "tidegate_rules_correlation_steps_total";
/// Groups that a checkpoint did not keep.
pub const CORRELATION_UNSAVED: &str = "tidegate_rules_correlation_unsaved_groups_total";
/// Rule changes that were not taken.
pub const REFUSED_CHANGES: &str = "tidegate_rules_refused_changes_total";
/// Time to evaluate one batch.
pub const BATCH_SECONDS: &str = "tidegate_rules_batch_seconds";
/// Time to compile all rules.
pub const COMPILE_SECONDS: &str = "tidegate_rules_compile_seconds";
