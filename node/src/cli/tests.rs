//! The command line as fingers know it, and its manual.

use clap::{CommandFactory, Parser};

use super::*;

const HEAD: &str = "# Command line

Written from the program; a test keeps the two equal. `outpost VERB --help` prints the same.
";

/// Whether clap takes this line.
fn takes(line: &str) -> Result<Cli, clap::Error> {
    let words = shell_words(line);
    Cli::try_parse_from(words.iter().map(String::as_str))
}

/// Splits at blanks, keeps what stands in single quotes together.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("it begins with one").push(c),
        }
    }
    words
}

#[test]
fn what_fingers_type_for_mosquitto_pub_is_taken() {
    for flags in [
        "-t a -m x",
        "-h host -p 1884 -t a/b -m 21.5 -q 1 -r",
        "-h 10.0.0.1 -t a -m -5",
        "-t a -l",
        "-t a -s",
        "-t a -n -r",
        "-t a -f /etc/hostname -d",
        "-L mqtt://u:p@host/topic -m x",
        "-t a -m x -u ann -P secret -i me -k 30 -c -V mqttv311",
        "-t a -m x -V 5 -x 60 -M 10 -I prefix",
        "-t a -m x -D publish user-property k v -D publish content-type text/plain -D connect receive-maximum 5",
        "-t a -m x --repeat 5 --repeat-delay 0.2 --quiet --nodelay",
        "-t a -m x --will-topic w --will-payload gone --will-qos 1 --will-retain",
        "--topic a --message x --qos 2 --retain --host h --port 1 --id me --debug --keepalive 60 --username u --pw p",
        "-t a --null-message --disable-clean-session -i x --protocol-version mqttv5 --session-expiry-interval 3",
    ] {
        if let Err(error) = takes(&format!("outpost pub {flags}")) {
            panic!("pub {flags}: {error}");
        }
    }
}

#[test]
fn what_fingers_type_for_mosquitto_sub_is_taken() {
    for flags in [
        "-t # -v",
        "-t a -t b/+ -T b/x -q 2 -C 3 -W 5",
        "-h host -p 1884 -t a -F '%I %t %p' -R",
        "-t a --retained-only",
        "-t a --remove-retained --retained-only -W 1",
        "-t a -N --pretty -F %J",
        "-t a -E -c -i me -q 1 -x 300",
        "-U a -c -i me",
        "-t a --retain-as-published --retain-handling new -V mqttv5",
        "-L mqtt://host/a -v -d",
        "-t $share/g/a -D subscribe subscription-identifier 7",
    ] {
        if let Err(error) = takes(&format!("outpost sub {flags}")) {
            panic!("sub {flags}: {error}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for line in [
        "pub -t a",
        "pub -m x",
        "pub -t a -m x -n",
        "pub -t a -m x -q 3",
        "pub -t a -m x -k 4",
        "pub -t a -m x -V mqttv31",
        "pub -t a -m x -c",
        "sub",
        "sub -t a -C 0",
        "sub -t a -F %t -v",
        "shadow",
        "shadow set lamp",
        "config check",
        "ca issue",
        "frobnicate",
        "dev --mqtt-port 70000",
        "node -c f join h:1 --name n --token t",
    ] {
        let error = takes(&format!("outpost {line}")).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
}

#[test]
fn no_verb_is_dev_and_help_is_no_failure() {
    assert!(takes("outpost").is_ok_and(|cli| cli.verb.is_none()));
    for line in [
        "outpost --help",
        "outpost pub --help",
        "outpost sub --help",
        "outpost shadow watch --help",
        "outpost --version",
    ] {
        assert_eq!(takes(line).expect_err("help ends parsing").exit_code(), 0, "{line}");
    }
}

#[test]
fn every_verb_has_help_with_an_example_and_stands_in_the_manual() {
    let mut page = HEAD.to_owned();
    let mut root = Cli::command();
    root.build();
    page_of(&mut root, "", &mut page);
    golden("docs/reference/cli.md", &page);
}

fn page_of(command: &mut clap::Command, path: &str, page: &mut String) {
    let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
    let help = command.clone().bin_name(&path).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let has_verbs = command.get_subcommands().next().is_some();
    assert!(
        has_verbs || help.iter().any(|line| line.contains("Example:")),
        "{path} --help has no example"
    );
    *page += &["\n## `", &path, "`\n\n```text\n", &help.join("\n"), "\n```\n"].concat();
    for verb in command.get_subcommands_mut() {
        page_of(verb, &path, page);
    }
}
