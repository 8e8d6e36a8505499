//! What the papers say and what the code does must agree.

use std::{collections::BTreeSet, path::Path, process::Command};

use reqwest::Method;

use crate::{
    server::{local, program},
    stand_in::StandIn,
};

fn paper(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// The rows of the table in `text` whose head begins with `head`, as cells.
fn table(text: &str, head: &str) -> Vec<Vec<String>> {
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
fn code(text: &str) -> Vec<String> {
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
            let path = path.replace("{id}", "none").replace("{itemId}", "none");
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
