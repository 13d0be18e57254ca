//! What a Windows fleet does all day.

use super::cast::{self, DOMAIN, PEOPLE, host};
use super::random::Random;
use super::windows::{
    Channel, Event, Program, SECURITY, SECURITY_FAILURE, SERVICES, SYSMON, access, connection, file, hashes, logon,
    process, sid, with_process,
};

const EXPLORER: (&str, &str) = (r"C:\Windows\explorer.exe", r"C:\Windows\Explorer.EXE");
const SVCHOST: (&str, &str) =
    (r"C:\Windows\System32\svchost.exe", r"C:\Windows\system32\svchost.exe -k netsvcs -p -s Schedule");

const fn program(
    image: &'static str,
    original: &'static str,
    description: &'static str,
    command: &'static str,
    parent: (&'static str, &'static str),
) -> Program {
    Program {
        image,
        original,
        description,
        company: "Microsoft Corporation",
        command,
        parent: parent.0,
        parent_command: parent.1,
    }
}

const PROGRAMS: [Program; 14] = [
    program(
        r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
        "msedge.exe",
        "Microsoft Edge",
        r#""C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe" --profile-directory=Default"#,
        EXPLORER,
    ),
    program(
        r"C:\Windows\System32\svchost.exe",
        "svchost.exe",
        "Host Process for Windows Services",
        r"C:\Windows\system32\svchost.exe -k netsvcs -p -s BITS",
        (r"C:\Windows\System32\services.exe", r"C:\Windows\system32\services.exe"),
    ),
    program(
        r"C:\Program Files\Microsoft Office\root\Office16\OUTLOOK.EXE",
        "Outlook.exe",
        "Microsoft Outlook",
        r#""C:\Program Files\Microsoft Office\root\Office16\OUTLOOK.EXE""#,
        EXPLORER,
    ),
    program(
        r"C:\Windows\System32\conhost.exe",
        "CONHOST.EXE",
        "Console Window Host",
        r"\??\C:\Windows\system32\conhost.exe 0xffffffff -ForceV1",
        (r"C:\Windows\System32\cmd.exe", r"C:\Windows\system32\cmd.exe /c build.cmd"),
    ),
    program(
        r"C:\Windows\System32\taskhostw.exe",
        "taskhostw.exe",
        "Host Process for Windows Tasks",
        "taskhostw.exe",
        SVCHOST,
    ),
    program(
        r"C:\Program Files\Microsoft Office\root\Office16\EXCEL.EXE",
        "Excel.exe",
        "Microsoft Excel",
        r#""C:\Program Files\Microsoft Office\root\Office16\EXCEL.EXE" /dde"#,
        EXPLORER,
    ),
    program(
        r"C:\Windows\System32\RuntimeBroker.exe",
        "RuntimeBroker.exe",
        "Runtime Broker",
        r"C:\Windows\System32\RuntimeBroker.exe -Embedding",
        (r"C:\Windows\System32\svchost.exe", r"C:\Windows\system32\svchost.exe -k DcomLaunch -p"),
    ),
    program(
        r"C:\Windows\System32\wermgr.exe",
        "WerMgr",
        "Windows Problem Reporting",
        r"C:\Windows\system32\wermgr.exe -upload",
        SVCHOST,
    ),
    program(
        r"C:\Users\Public\AppData\Local\Programs\Microsoft VS Code\Code.exe",
        "electron.exe",
        "Visual Studio Code",
        r#""C:\Users\Public\AppData\Local\Programs\Microsoft VS Code\Code.exe" --type=renderer"#,
        EXPLORER,
    ),
    program(
        r"C:\Windows\System32\SearchProtocolHost.exe",
        "SearchProtocolHost.exe",
        "Microsoft Windows Search Protocol Host",
        r"C:\Windows\system32\SearchProtocolHost.exe Global\UsGthrFltPipeMssGthrPipe",
        (r"C:\Windows\System32\SearchIndexer.exe", r"C:\Windows\system32\SearchIndexer.exe /Embedding"),
    ),
    program(
        r"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe",
        "PowerShell.EXE",
        "Windows PowerShell",
        r"powershell.exe -File C:\ProgramData\Inventory\Collect-Inventory.ps1",
        SVCHOST,
    ),
    program(
        r"C:\Windows\System32\gpupdate.exe",
        "gpupdate.exe",
        "Microsoft Group Policy Update Utility",
        "gpupdate.exe /target:computer",
        SVCHOST,
    ),
    program(
        r"C:\Program Files\Git\cmd\git.exe",
        "git.exe",
        "Git for Windows",
        r#"git.exe fetch --prune origin"#,
        EXPLORER,
    ),
    program(
        r"C:\Windows\System32\notepad.exe",
        "NOTEPAD.EXE",
        "Notepad",
        r#""C:\Windows\system32\notepad.exe" C:\Users\Public\Documents\notes.txt"#,
        EXPLORER,
    ),
];

const NAMES: [&str; 10] = [
    "outlook.office365.com",
    "login.microsoftonline.com",
    "edge.microsoft.com",
    "git.harbor.example",
    "wpad.harbor.example",
    "ctldl.windowsupdate.com",
    "teams.microsoft.com",
    "settings-win.data.microsoft.com",
    "dc01.harbor.example",
    "cdn.jsdelivr.net",
];

const LIBRARIES: [&str; 6] = ["ntdll.dll", "kernel32.dll", "combase.dll", "rpcrt4.dll", "urlmon.dll", "crypt32.dll"];

/// An event of an ordinary moment.
pub fn ordinary(random: &mut Random, at: i64) -> String {
    let number = random.below(cast::HOSTS);
    let person = PEOPLE[(number as usize * 7) % PEOPLE.len()];
    let machine = Machine { at, host: host(number), number, user: format!(r"{DOMAIN}\{person}"), person };
    match random.below(100) {
        0..22 => machine.process(random),
        22..40 => machine.connection(random),
        40..56 => machine.name_query(random),
        56..68 => machine.file(random),
        68..78 => machine.library(random),
        78..84 => machine.access(random),
        84..92 => machine.logon(random),
        92..96 => machine.logoff(random),
        96..98 => machine.failed_logon(random),
        _ => machine.service_state(random),
    }
    .line()
}

/// A host at a moment.
struct Machine {
    at: i64,
    host: String,
    number: u64,
    user: String,
    person: &'static str,
}

impl Machine {
    fn event(&self, channel: Channel, id: u32, title: &'static str, fields: Vec<(&'static str, String)>) -> Event {
        Event { at: self.at, host: self.host.clone(), channel, id, title, fields }
    }

    fn address(&self) -> String {
        format!("10.40.{}.{}", self.number / 50, 20 + self.number % 50)
    }

    fn process(&self, random: &mut Random) -> Event {
        let program = random.pick_skewed(&PROGRAMS);
        process(self.at, self.host.clone(), &self.user, program, random)
    }

    fn connection(&self, random: &mut Random) -> Event {
        let program = random.pick_skewed(&PROGRAMS);
        let (address, port) = *random.pick(&[
            ("10.40.0.5", "53"),
            ("10.40.0.5", "389"),
            ("192.0.2.33", "443"),
            ("203.0.113.80", "443"),
            ("10.40.0.9", "445"),
        ]);
        connection(self.at, self.host.clone(), &self.user, program.image, (&self.address(), address, port), random)
    }

    fn name_query(&self, random: &mut Random) -> Event {
        let program = random.pick_skewed(&PROGRAMS);
        let found = format!("::ffff:192.0.2.{};", random.between(1, 250));
        let name = random.pick_skewed(&NAMES);
        self.event(
            SYSMON,
            22,
            "Dns query:",
            with_process(
                random,
                program.image,
                &self.user,
                vec![("QueryName", (*name).to_owned()), ("QueryStatus", "0".to_owned()), ("QueryResults", found)],
            ),
        )
    }

    fn file(&self, random: &mut Random) -> Event {
        let program = random.pick_skewed(&PROGRAMS);
        let name = format!(
            r"C:\Users\{}\AppData\Local\Temp\{}.{}",
            self.person,
            random.hex(8),
            random.pick(&["tmp", "log", "etl", "json"])
        );
        file(self.at, self.host.clone(), &self.user, program.image, &name, random)
    }

    fn library(&self, random: &mut Random) -> Event {
        let program = random.pick_skewed(&PROGRAMS);
        let loaded = format!(r"C:\Windows\System32\{}", random.pick_skewed(&LIBRARIES));
        let fields = vec![
            ("ImageLoaded", loaded),
            ("Company", "Microsoft Corporation".to_owned()),
            ("Hashes", hashes(random)),
            ("Signed", "true".to_owned()),
            ("Signature", "Microsoft Windows".to_owned()),
            ("SignatureStatus", "Valid".to_owned()),
        ];
        self.event(SYSMON, 7, "Image loaded:", with_process(random, program.image, &self.user, fields))
    }

    /// The local security authority looks after other processes all day; others look at theirs.
    fn access(&self, random: &mut Random) -> Event {
        let source = *random.pick(&[
            r"C:\Windows\system32\lsass.exe",
            r"C:\Windows\System32\svchost.exe",
            r"C:\Windows\System32\Taskmgr.exe",
        ]);
        let target = random.pick_skewed(&PROGRAMS).image;
        let calls = r"C:\Windows\SYSTEM32\ntdll.dll+9d4c4|C:\Windows\System32\KERNELBASE.dll+2c13e|C:\Windows\System32\RPCRT4.dll+796e3";
        access(self.at, self.host.clone(), (source, target, "0x1000", calls), &self.user, random)
    }

    fn logon(&self, random: &mut Random) -> Event {
        let kind = *random.pick_skewed(&["3", "5", "2", "7"]);
        let from = if kind == "3" { self.address() } else { "-".to_owned() };
        logon(self.at, self.host.clone(), self.person, kind, &from, random)
    }

    fn logoff(&self, random: &mut Random) -> Event {
        let fields = vec![
            ("TargetUserSid", sid(self.person)),
            ("TargetUserName", self.person.to_owned()),
            ("TargetDomainName", DOMAIN.to_owned()),
            ("TargetLogonId", format!("0x{}", random.hex(6))),
            ("LogonType", "3".to_owned()),
        ];
        self.event(SECURITY, 4634, "An account was logged off.", fields)
    }

    fn failed_logon(&self, random: &mut Random) -> Event {
        let fields = vec![
            ("SubjectUserSid", "S-1-5-18".to_owned()),
            ("SubjectUserName", "-".to_owned()),
            ("SubjectDomainName", "-".to_owned()),
            ("TargetUserName", self.person.to_owned()),
            ("TargetDomainName", DOMAIN.to_owned()),
            ("Status", "0xc000006d".to_owned()),
            ("SubStatus", "0xc000006a".to_owned()),
            ("LogonType", "2".to_owned()),
            ("IpAddress", "127.0.0.1".to_owned()),
            ("IpPort", "0".to_owned()),
            ("ProcessName", r"C:\Windows\System32\svchost.exe".to_owned()),
            ("TargetLogonId", format!("0x{}", random.hex(6))),
        ];
        self.event(SECURITY_FAILURE, 4625, "An account failed to log on.", fields)
    }

    fn service_state(&self, random: &mut Random) -> Event {
        let service = *random.pick(&[
            "Background Intelligent Transfer Service",
            "Windows Update",
            "WinHTTP Web Proxy Auto-Discovery Service",
            "Network Connection Broker",
        ]);
        let state = *random.pick(&["running", "stopped"]);
        self.event(
            SERVICES,
            7036,
            "The service entered a state.",
            vec![("param1", service.to_owned()), ("param2", state.to_owned())],
        )
    }
}
