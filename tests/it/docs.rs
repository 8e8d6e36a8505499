//! What the papers say and what the code does must agree.

use std::{collections::BTreeSet, path::Path, process::Command};

use reqwest::Method;
use serde_json::json;

use crate::{
    server::{finished, local, local_with, program},
    stand_in::StandIn,
};

pub(crate) fn paper(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// The rows of the table in `text` whose head begins with `head`, as cells.
pub(crate) fn table(text: &str, head: &str) -> Vec<Vec<String>> {
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {head}")))
        .skip(2);
    let cells = |line: &str| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    rows.take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// The texts in backticks.
pub(crate) fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_the_readme_is_served_and_no_other_method() {
    let (local, api) = local(&StandIn::start().await).await;
    let all = [
        Method::GET,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::PUT,
    ];
    let mut routes = 0;
    for row in table(&paper("README.md"), "path") {
        let paths: Vec<String> = code(&row[0])
            .into_iter()
            .filter(|text| text.starts_with('/'))
            .collect();
        let methods: Vec<&str> = row[1].split('·').collect();
        assert_eq!(paths.len(), methods.len(), "{row:?}");
        for (path, methods) in paths.iter().zip(methods) {
            let names = ["{id}", "{itemId}", "{secretId}"];
            let path = names
                .iter()
                .fold(path.clone(), |path, name| path.replace(name, "none"));
            for method in &all {
                let documented = methods.contains(method.as_str());
                let (status, body) = api.call(method.clone(), &path, None).await;
                let unknown = body["message"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("Cannot "));
                // A route that exists says what is wrong with the request, not that it cannot be routed.
                assert_eq!(documented, !unknown, "{method} {path}: {status} {body}");
                routes += usize::from(documented);
            }
        }
    }
    assert!(routes > 30, "only {routes} routes were found in the README");
    local.shutdown().await;
}

#[test]
fn every_route_in_another_shape_is_in_the_readme_and_the_other_way_round() {
    let owned = |(method, path): (&str, &str)| (method.to_owned(), path.to_owned());
    assert_eq!(
        routes("in the shape of Cekura"),
        ringback_api::cekura_operations().map(owned).collect()
    );
    assert_eq!(
        routes("in the shape of SigmaMind"),
        ringback_api::sigmamind_operations().map(owned).collect()
    );
}

/// The methods and paths in the README's table whose head begins with `head`.
fn routes(head: &str) -> BTreeSet<(String, String)> {
    let mut documented = BTreeSet::new();
    for row in table(&paper("README.md"), head) {
        let paths = code(&row[0]);
        let methods: Vec<&str> = row[1].split('·').collect();
        assert_eq!(paths.len(), methods.len(), "{row:?}");
        for (path, methods) in paths.into_iter().zip(methods) {
            let methods = methods.split(',').map(|method| method.trim().to_owned());
            documented.extend(methods.map(|method| (method, path.clone())));
        }
    }
    documented
}

#[test]
fn every_option_of_serve_is_in_the_readme_and_the_other_way_round() {
    let help = Command::new(program())
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let words = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter(|word| word.len() > 2 && word.starts_with("--") && *word != "--help")
            .map(str::to_owned)
            .collect()
    };
    let rows = table(&paper("README.md"), "option or variable");
    let documented: String = rows.iter().map(|row| format!("{} ", row[0])).collect();
    assert_eq!(words(&documented), words(&help));
    for variable in code(&documented)
        .iter()
        .filter(|text| text.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    {
        assert!(
            help.contains(variable.as_str()),
            "{variable} is not in the help of serve"
        );
    }
}

/// The help of a command that has commands, which are those of the README's table whose head begins with `head`.
fn help_of(command: &str, head: &str) -> String {
    let help = Command::new(program())
        .args([command, "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let served: BTreeSet<&str> = commands
        .take_while(|line| !line.is_empty())
        // A text that is too long for a line goes on below, further in.
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    let documented: BTreeSet<String> = table(&paper("README.md"), head)
        .iter()
        .filter_map(|row| Some(code(&row[0]).first()?.split(' ').nth(1)?.to_owned()))
        .collect();
    let served: BTreeSet<String> = served.into_iter().map(str::to_owned).collect();
    assert_eq!(documented, served);
    help
}

#[test]
fn every_command_for_endpoints_is_in_the_readme_and_the_other_way_round() {
    let help = help_of("endpoint", "command");
    for variable in ["RINGBACK_URL", "RINGBACK_API_KEY", "RINGBACK_PROVIDER_KEY"] {
        assert!(
            help.contains(variable) && paper("README.md").contains(variable),
            "{variable}"
        );
    }
}

#[test]
fn every_command_for_organizations_is_in_the_readme_and_the_other_way_round() {
    let help = help_of("org", "`org` command");
    assert!(help.contains("RINGBACK_API_KEY") && help.contains("AWS_PROFILE"));
}

#[test]
fn the_architecture_names_every_function_and_every_module() {
    let architecture = paper("ARCHITECTURE.md");
    let folders = |path: &str| -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    for function in folders("functions") {
        assert!(
            architecture.contains(&format!("`functions/{function}`")),
            "functions/{function}"
        );
    }
    for part in folders("infra").iter().filter(|name| !name.contains('.')) {
        assert!(architecture.contains(&format!("`infra/{part}`")), "infra/{part}");
    }
    let modules = paper("shared/src/lib.rs");
    for module in modules.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = module.trim_end_matches(';');
        assert!(
            architecture.contains(&format!("`{module}`")),
            "shared's module {module}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_for_endpoints_do_what_they_say() {
    let (local, api) = local_with(&StandIn::start().await, |options| {
        options.public_url = Some("https://tunnel.example.com/".to_owned());
    })
    .await;
    let run = |args: &[&str]| {
        let mut command = Command::new(program());
        command
            .arg("endpoint")
            .args(args)
            .args(["--server", &api.base])
            .env("RINGBACK_API_KEY", api.key.as_deref().unwrap())
            .env("RINGBACK_PROVIDER_KEY", "the-providers-key");
        finished(command)
    };
    let url = "https://calls.example.com/v1";
    let (done, made, _) = run(&["create", "--url", url, "--name", "Bridge"]).await;
    assert!(done, "{made}");
    assert_eq!(
        (made["url"].as_str(), &made["name"], &made["hasApiKey"]),
        (Some(url), &json!("Bridge"), &json!(true))
    );
    assert!(!made.to_string().contains("the-providers-key"));
    let webhook = made["webhooks"]["callEnded"].as_str().unwrap();
    assert!(
        webhook.starts_with("https://tunnel.example.com/hooks/"),
        "{webhook}"
    );
    let id = made["id"].as_str().unwrap();
    let (_, listed, _) = run(&["list"]).await;
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["id"]),
        (1, &made["id"])
    );
    let (_, two, _) = run(&["add-secret", id]).await;
    assert_eq!(two["secrets"].as_array().unwrap().len(), 2);
    let old = made["secrets"][0]["id"].as_str().unwrap();
    let (_, one, _) = run(&["delete-secret", id, old]).await;
    assert_eq!(one["secrets"][0]["id"], two["secrets"][1]["id"]);
    assert!(run(&["delete", id]).await.0);
    let (done, _, said) = run(&["delete", id]).await;
    assert!(!done && said.contains(id), "{said}");
    local.shutdown().await;
}
