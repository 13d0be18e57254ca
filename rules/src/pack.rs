//! The starter pack: rules of our own that are in the binary.

use crate::problem::RuleFile;

/// (name, text) of each rule. A test compares the list with the folder.
const PACK: &[(&str, &str)] = &[
    ("pack/aws/access_key_for_other_user.yml", include_str!("../pack/aws/access_key_for_other_user.yml")),
    ("pack/aws/administrator_policy_attached.yml", include_str!("../pack/aws/administrator_policy_attached.yml")),
    ("pack/aws/bucket_made_public.yml", include_str!("../pack/aws/bucket_made_public.yml")),
    ("pack/aws/caller_identity_from_attack_tool.yml", include_str!("../pack/aws/caller_identity_from_attack_tool.yml")),
    ("pack/aws/console_login_after_failures.yml", include_str!("../pack/aws/console_login_after_failures.yml")),
    ("pack/aws/console_login_failed.yml", include_str!("../pack/aws/console_login_failed.yml")),
    ("pack/aws/console_login_without_mfa.yml", include_str!("../pack/aws/console_login_without_mfa.yml")),
    ("pack/aws/console_password_spraying.yml", include_str!("../pack/aws/console_password_spraying.yml")),
    ("pack/aws/discovery_burst.yml", include_str!("../pack/aws/discovery_burst.yml")),
    ("pack/aws/gpu_instances_started.yml", include_str!("../pack/aws/gpu_instances_started.yml")),
    ("pack/aws/kms_key_deletion_scheduled.yml", include_str!("../pack/aws/kms_key_deletion_scheduled.yml")),
    ("pack/aws/login_profile_for_other_user.yml", include_str!("../pack/aws/login_profile_for_other_user.yml")),
    ("pack/aws/mass_deletion.yml", include_str!("../pack/aws/mass_deletion.yml")),
    ("pack/aws/root_console_login_without_mfa.yml", include_str!("../pack/aws/root_console_login_without_mfa.yml")),
    ("pack/aws/security_group_open_to_world.yml", include_str!("../pack/aws/security_group_open_to_world.yml")),
    ("pack/aws/threat_detection_disabled.yml", include_str!("../pack/aws/threat_detection_disabled.yml")),
    ("pack/aws/trail_stopped_or_deleted.yml", include_str!("../pack/aws/trail_stopped_or_deleted.yml")),
    ("pack/cost/gpu_hour_expensive.yml", include_str!("../pack/cost/gpu_hour_expensive.yml")),
    ("pack/cost/large_commitment_purchase.yml", include_str!("../pack/cost/large_commitment_purchase.yml")),
    ("pack/cost/marketplace_purchase.yml", include_str!("../pack/cost/marketplace_purchase.yml")),
    ("pack/cost/unexpected_region.yml", include_str!("../pack/cost/unexpected_region.yml")),
    ("pack/cost/untagged_expensive_resource.yml", include_str!("../pack/cost/untagged_expensive_resource.yml")),
    ("pack/github/protection_removed.yml", include_str!("../pack/github/protection_removed.yml")),
    ("pack/github/repository_made_public.yml", include_str!("../pack/github/repository_made_public.yml")),
    ("pack/kubernetes/anonymous_request_allowed.yml", include_str!("../pack/kubernetes/anonymous_request_allowed.yml")),
    ("pack/kubernetes/exec_into_pod.yml", include_str!("../pack/kubernetes/exec_into_pod.yml")),
    ("pack/windows/comsvcs_minidump.yml", include_str!("../pack/windows/comsvcs_minidump.yml")),
    ("pack/windows/credential_hive_saved.yml", include_str!("../pack/windows/credential_hive_saved.yml")),
    ("pack/windows/defender_weakened.yml", include_str!("../pack/windows/defender_weakened.yml")),
    ("pack/windows/download_with_system_tool.yml", include_str!("../pack/windows/download_with_system_tool.yml")),
    ("pack/windows/event_log_cleared.yml", include_str!("../pack/windows/event_log_cleared.yml")),
    ("pack/windows/local_admin_added.yml", include_str!("../pack/windows/local_admin_added.yml")),
    ("pack/windows/lsass_memory_access.yml", include_str!("../pack/windows/lsass_memory_access.yml")),
    ("pack/windows/password_spraying.yml", include_str!("../pack/windows/password_spraying.yml")),
    ("pack/windows/powershell_encoded_command.yml", include_str!("../pack/windows/powershell_encoded_command.yml")),
    ("pack/windows/procdump_of_lsass.yml", include_str!("../pack/windows/procdump_of_lsass.yml")),
    ("pack/windows/remote_thread_in_lsass.yml", include_str!("../pack/windows/remote_thread_in_lsass.yml")),
    ("pack/windows/run_key_to_writable_path.yml", include_str!("../pack/windows/run_key_to_writable_path.yml")),
    ("pack/windows/rundll32_unusual.yml", include_str!("../pack/windows/rundll32_unusual.yml")),
    ("pack/windows/service_from_unusual_path.yml", include_str!("../pack/windows/service_from_unusual_path.yml")),
    ("pack/windows/shadow_copies_deleted.yml", include_str!("../pack/windows/shadow_copies_deleted.yml")),
    ("pack/windows/suspicious_scheduled_task.yml", include_str!("../pack/windows/suspicious_scheduled_task.yml")),
];

/// The rules of the pack, by name. The names start with `pack/`, so that they cannot clash with a rule folder's.
pub fn files() -> Vec<RuleFile> {
    PACK.iter().map(|(name, text)| RuleFile::new(*name, *text)).collect()
}
