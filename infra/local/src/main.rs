//! The `ringback` program.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use ringback_local::{
    demo::{self, DemoOptions},
    endpoints::{self, Action},
    orgs::{self, Stack},
    serve::{Local, Model, Options, WORKERS},
};
use ringback_shared::{
    clock::{Clock, SystemClock},
    config::Config,
    provider::is_url,
    telemetry::may_be_shown,
};
use serde_json::{Map, Value};
use tracing_subscriber::{EnvFilter, filter::filter_fn, prelude::*};
use uuid::Uuid;

/// Rehearses the calls that a voice or chat agent will get.
#[derive(Debug, Parser)]
#[command(name = "ringback", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What is not given on the command line, where others can see it.
const SECRETS: &str = "Environment:
  RINGBACK_API_KEY  the local organization's API key; without it one is made up and kept in the folder
  OPENAI_API_KEY    the key of the model's endpoint";

const ENDPOINT_SECRETS: &str = "Environment:
  RINGBACK_API_KEY       the organization's API key; without it the one that `ringback serve` keeps in the folder
  RINGBACK_PROVIDER_KEY  for `create`: the key that the provider asks for; without it none is sent
  RINGBACK_PROVIDER_SECRET  for `create` and `add-secret`: what the provider signs its webhooks with; without it Ringback makes one,
                         where it may";

const ORG_SECRETS: &str = "Environment:
  AWS_PROFILE, AWS_REGION, AWS_ACCESS_KEY_ID, ...  the credentials and the region, as for every program of AWS
  AWS_ENDPOINT_URL  where the services are, if not at AWS
  RINGBACK_API_KEY  for `delete-key`: the API key to revoke, unless --sha256 names it";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API on this machine, with everything behind it in this process.
    #[command(after_help = SECRETS)]
    Serve(Serve),
    /// Run sample simulations against a sample agent and show what they find.
    #[command(after_help = "OPENAI_API_KEY  the key of the model's endpoint")]
    Demo(Demo),
    /// Make voice providers known to a server, and manage the secrets that their webhooks are signed with.
    #[command(after_help = ENDPOINT_SECRETS)]
    Endpoint(Endpoint),
    /// Administer the organizations of a stack on AWS in its table, with your own credentials.
    #[command(after_help = ORG_SECRETS)]
    Org(Org),
    /// Print the description of the API, as OpenAPI 3.1 in JSON.
    Openapi,
}

#[derive(Debug, Args)]
struct Serve {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787)))]
    listen: SocketAddr,
    /// The folder for what is kept.
    #[arg(long, value_name = "FOLDER", default_value = ".ringback")]
    data_dir: PathBuf,
    /// How many conversations run at once.
    #[arg(long, value_name = "NUMBER", default_value_t = WORKERS)]
    workers: usize,
    /// Where others reach this server, if not where it listens: a tunnel for the webhooks of a provider, for example.
    #[arg(long, value_name = "URL", env = "PUBLIC_URL")]
    public_url: Option<String>,
    /// Allow agents, voice providers and hooks on private and loopback addresses.
    #[arg(long)]
    allow_private_targets: bool,
    /// Keep everything but the API key in memory: it is gone when the program stops.
    #[arg(long)]
    memory: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Args)]
struct Demo {
    /// Print the items as a JSON array, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
    /// Keep everything in memory.
    #[arg(long)]
    memory: bool,
    /// The folder for what is kept; without it a temporary one.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Args)]
struct Endpoint {
    /// The server's URL.
    #[arg(
        long,
        value_name = "URL",
        env = "RINGBACK_URL",
        default_value = endpoints::DEFAULT_SERVER,
        hide_env_values = true,
        global = true
    )]
    server: String,
    /// The folder of `ringback serve`, where the API key is if none is given.
    #[arg(long, value_name = "FOLDER", default_value = ".ringback", global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    action: EndpointCommand,
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
    /// Make a provider known. The answer is the only one that shows the endpoint's first secret.
    #[command(after_help = ENDPOINT_SECRETS)]
    Create {
        /// Where calls are ordered. Of Vapi and Retell it is known.
        #[arg(long, value_name = "URL", required_unless_present_any = ["provider", "settings"])]
        url: Option<String>,
        /// Whose calls and events they are: generic, vapi, retell, elevenlabs, bland, twilio, livekit or telnyx.
        #[arg(long, value_name = "PROVIDER")]
        provider: Option<String>,
        /// What else to say of it, as a JSON object, such as its signature.
        #[arg(long, value_name = "JSON", value_parser = object)]
        settings: Option<Map<String, Value>>,
        /// What to call it.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Show the newest 100 endpoints.
    List,
    /// Delete an endpoint: no webhook of it is taken any more.
    Delete {
        /// The endpoint's id.
        #[arg(value_name = "ID")]
        id: Uuid,
    },
    /// Add a secret that the endpoint's webhooks may be signed with. The answer is the only one that shows it.
    AddSecret {
        /// The endpoint's id.
        #[arg(value_name = "ID")]
        id: Uuid,
    },
    /// Delete a secret: what is signed with it is refused within a minute.
    DeleteSecret {
        /// The endpoint's id.
        #[arg(value_name = "ID")]
        id: Uuid,
        /// The secret's id.
        #[arg(value_name = "SECRET_ID")]
        secret_id: Uuid,
    },
}

#[derive(Debug, Args)]
struct Org {
    #[command(subcommand)]
    action: OrgCommand,
}

#[derive(Debug, Args)]
struct Table {
    /// The table: the stack's output `TableName`.
    #[arg(long, value_name = "TABLE")]
    table: String,
}

#[derive(Debug, Subcommand)]
enum OrgCommand {
    /// Make an organization and its first API key. The answer is the only one that shows the key.
    Create {
        /// What to call it.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        table: Table,
    },
    /// Show the organizations. This reads the whole table.
    List {
        #[command(flatten)]
        table: Table,
    },
    /// Make a further API key. The answer is the only one that shows it.
    AddKey {
        /// The organization's id.
        #[arg(value_name = "ORG_ID")]
        org: Uuid,
        /// What to call the key.
        #[arg(long, value_name = "NAME")]
        name: String,
        #[command(flatten)]
        table: Table,
    },
    /// Revoke an API key at once: the one in RINGBACK_API_KEY, or the one that --sha256 names.
    #[command(after_help = ORG_SECRETS)]
    DeleteKey {
        /// The key's SHA-256, in hexadecimal.
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        #[command(flatten)]
        table: Table,
    },
    /// Delete everything that is kept of an organization. Without --yes, show what there is. This reads the whole table.
    Delete {
        /// The organization's id.
        #[arg(value_name = "ORG_ID")]
        org: Uuid,
        #[command(flatten)]
        table: Table,
        /// What the names of the stack's secrets begin with, `ringback/STACK`; without it secrets stay.
        #[arg(long, value_name = "PREFIX")]
        secrets_prefix: Option<String>,
        /// Delete, and not only show.
        #[arg(long)]
        yes: bool,
        /// Delete although runs are going on: what is at work on them may write rows that stay behind.
        #[arg(long)]
        force: bool,
    },
}

/// A JSON object on the command line.
fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it must be a JSON object: {error}"))
}

impl From<EndpointCommand> for Action {
    fn from(command: EndpointCommand) -> Self {
        match command {
            EndpointCommand::Create {
                url,
                provider,
                settings,
                name,
            } => {
                let mut body = settings.unwrap_or_default();
                for (field, value) in [
                    ("url", url),
                    ("provider", provider),
                    ("name", name),
                    ("apiKey", variable("RINGBACK_PROVIDER_KEY")),
                    ("secret", variable("RINGBACK_PROVIDER_SECRET")),
                ] {
                    if let Some(value) = value {
                        body.insert(field.to_owned(), Value::String(value));
                    }
                }
                Self::Create(body)
            }
            EndpointCommand::List => Self::List,
            EndpointCommand::Delete { id } => Self::Delete(id),
            EndpointCommand::AddSecret { id } => Self::AddSecret(id, variable("RINGBACK_PROVIDER_SECRET")),
            EndpointCommand::DeleteSecret { id, secret_id } => Self::DeleteSecret(id, secret_id),
        }
    }
}

/// The language model that calls and judges. Its key is in `OPENAI_API_KEY`: what is on a command line, others can see.
#[derive(Debug, Args)]
struct ModelArgs {
    /// The base URL of an OpenAI-compatible endpoint.
    #[arg(
        id = "model_url",
        long = "model-url",
        value_name = "URL",
        env = "OPENAI_BASE_URL"
    )]
    base_url: Option<String>,
    /// The model to ask for where none is named.
    #[arg(
        id = "model_name",
        long = "model",
        value_name = "NAME",
        env = "RINGBACK_MODEL"
    )]
    default_model: Option<String>,
}

/// A variable of the environment; an empty one counts as not set.
#[expect(
    clippy::disallowed_methods,
    reason = "the program's own configuration, read once"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

impl From<ModelArgs> for Model {
    fn from(args: ModelArgs) -> Self {
        // An empty variable is one that is not set.
        let set = |value: Option<String>| value.filter(|value| !value.trim().is_empty());
        Self {
            base_url: set(args.base_url),
            api_key: variable("OPENAI_API_KEY"),
            default_model: set(args.default_model),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default_level = match cli.command {
        Command::Serve(_) => "info,dynoxide=error",
        Command::Demo(_) | Command::Endpoint(_) | Command::Org(_) | Command::Openapi => "error",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_filter(filter_fn(|event| may_be_shown(*event.level(), event.target())));
    tracing_subscriber::registry().with(filter).with(layer).init();
    // Two threads for everything but the emulators, which have their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build();
    let result = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let result = runtime.block_on(async {
            match cli.command {
                Command::Serve(args) => serve(args).await,
                Command::Demo(args) => run_demo(args).await,
                Command::Endpoint(args) => endpoint(args).await,
                Command::Org(args) => org(args.action).await,
                Command::Openapi => openapi(),
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(500));
        result
    });
    result.unwrap_or_else(|error| {
        say(&format!("ringback: {error}"));
        ExitCode::FAILURE
    })
}

/// Tells the user something, on standard error.
fn say(text: &str) {
    // Nobody is left to tell if this fails.
    let _unheard = writeln!(io::stderr(), "{text}");
}

async fn serve(args: Serve) -> Result<ExitCode, String> {
    let mut stop = Signals::new()?;
    if args
        .public_url
        .as_deref()
        .is_some_and(|url| !url.is_empty() && !is_url(url))
    {
        return Err(
            "--public-url must be an http or https URL, such as https://tunnel.example.com".to_owned(),
        );
    }
    let options = Options {
        listen: args.listen,
        data_dir: Some(args.data_dir),
        memory: args.memory,
        workers: args.workers,
        public_url: args.public_url.filter(|url| !url.trim().is_empty()),
        allow_private_targets: args.allow_private_targets,
        model: args.model.into(),
        api_key: variable("RINGBACK_API_KEY"),
        settings: Config::VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), variable(name)?)))
            .collect(),
        ..Options::default()
    };
    let mut local = tokio::select! {
        local = Local::start(options) => local.map_err(|error| error.to_string())?,
        () = stop.received() => return Ok(ExitCode::SUCCESS),
    };
    match local.key_file() {
        Some(path) => say(&format!("the API key is in {}", path.display())),
        None => say("the API key is the one of RINGBACK_API_KEY"),
    }
    say(&format!("listening on {}", local.base_url()));
    let failed = tokio::select! {
        () = stop.received() => None,
        reason = local.failed() => Some(reason),
    };
    local.shutdown().await;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => Err(reason),
    }
}

async fn run_demo(args: Demo) -> Result<ExitCode, String> {
    let mut stop = Signals::new()?;
    let options = DemoOptions {
        json: args.json,
        memory: args.memory,
        data_dir: args.data_dir,
        model: args.model.into(),
    };
    let mut out = Vec::new();
    let result = tokio::select! {
        result = demo::run(options, &mut out) => Some(result),
        () = stop.received() => None,
    };
    match result {
        Some(Ok(worked)) => {
            io::stdout().write_all(&out).map_err(|error| error.to_string())?;
            Ok(if worked {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Some(Err(error)) => Err(error.to_string()),
        None => Err("stopped".to_owned()),
    }
}

async fn endpoint(args: Endpoint) -> Result<ExitCode, String> {
    let key = endpoints::api_key(variable("RINGBACK_API_KEY"), &args.data_dir);
    let key = key.map_err(|error| error.to_string())?;
    // An empty variable is one that is not set.
    let server = match args.server.trim() {
        "" => endpoints::DEFAULT_SERVER,
        server => server,
    };
    let answer = endpoints::run(server, &key, args.action.into()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    io::stdout()
        .write_all(answer.as_bytes())
        .map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn org(command: OrgCommand) -> Result<ExitCode, String> {
    let (action, table, prefix) = match command {
        OrgCommand::Create { name, table } => (orgs::Action::Create(name), table, None),
        OrgCommand::List { table } => (orgs::Action::List, table, None),
        OrgCommand::AddKey { org, name, table } => (orgs::Action::AddKey { org, name }, table, None),
        OrgCommand::DeleteKey { sha256, table } => {
            let key = variable("RINGBACK_API_KEY");
            let digest = orgs::key_digest(key.as_deref(), sha256.as_deref());
            let digest = digest.map_err(|error| error.to_string())?.ok_or(
                "there is no API key to revoke: set RINGBACK_API_KEY, or name the key by its SHA-256 with --sha256",
            )?;
            (orgs::Action::DeleteKey(digest), table, None)
        }
        OrgCommand::Delete {
            org,
            table,
            secrets_prefix,
            yes,
            force,
        } => (orgs::Action::Delete { org, yes, force }, table, secrets_prefix),
    };
    let stack = Stack::connect(&table.table, prefix.as_deref())
        .await
        .map_err(|error| error.to_string())?;
    let shows = matches!(action, orgs::Action::Delete { yes: false, .. });
    let answer = orgs::run(&stack, action, SystemClock.now_ms()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    io::stdout()
        .write_all(format!("{answer:#}\n").as_bytes())
        .map_err(|error| error.to_string())?;
    if answer["found"] == false {
        say("there is nothing of this organization in the table");
    } else if shows {
        say("nothing was deleted: say --yes to delete it");
    }
    if answer["secretsLeft"].is_array() {
        say("secrets are left alone without --secrets-prefix");
    }
    if answer["deleted"] == false && answer.get("found").is_none() {
        say("there is no such API key in the table");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the description of the API as the code has it, which is what the served copy is made of.
fn openapi() -> Result<ExitCode, String> {
    let document = ringback_api::openapi::document().map_err(|error| error.to_string())?;
    // Two spaces and a line's end at the end, as a file has them.
    let text = format!("{document:#}\n");
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C and, where there is one, SIGTERM.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, String> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
            Ok(Self { terminate })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn received(&mut self) {
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                // Without a handler the signal ends the process by itself.
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        tokio::select! {
            () = interrupt => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        interrupt.await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_bare_shows_the_help() {
        Cli::command().debug_assert();
        let bare = Cli::try_parse_from(["ringback"]).unwrap_err();
        assert!(bare.to_string().contains("serve") && bare.to_string().contains("demo"));
        let serve = [
            "ringback",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "x",
            "--memory",
        ];
        assert!(matches!(Cli::try_parse_from(serve).unwrap().command, Command::Serve(args) if args.memory));
        let describe = Cli::try_parse_from(["ringback", "openapi"]).unwrap();
        assert!(matches!(describe.command, Command::Openapi));
    }

    #[test]
    fn endpoints_are_named_by_their_ids_and_no_key_is_an_option() {
        let id = Uuid::from_u128(7).to_string();
        let parse = |args: &[&str]| Cli::try_parse_from([&["ringback", "endpoint"][..], args].concat());
        let create = [
            "create",
            "--url",
            "https://a.example",
            "--server",
            "http://b.example",
        ];
        let Command::Endpoint(args) = parse(&create).unwrap().command else {
            panic!("not an endpoint's command");
        };
        assert_eq!(args.server, "http://b.example");
        assert_eq!(args.data_dir, PathBuf::from(".ringback"));
        for args in [
            &["list"][..],
            &["--server", "http://b.example", "list"],
            &["create", "--provider", "vapi", "--settings", r#"{"vapi": {}}"#],
            &["delete", &id],
            &["add-secret", &id],
            &["delete-secret", &id, &id],
        ] {
            assert!(parse(args).is_ok(), "{args:?}");
        }
        for args in [
            &["create"][..],
            &["create", "--url", "https://a.example", "--key", "k"],
            &["create", "--provider", "vapi", "--settings", "[]"],
            &["delete", "../assistant"],
            &["delete-secret", &id],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn organizations_are_in_a_table_and_no_key_is_an_option() {
        let id = Uuid::from_u128(7).to_string();
        let digest = "ab".repeat(32);
        let parse = |args: &[&str]| {
            let whole = [&["ringback", "org"][..], args, &["--table", "t"]].concat();
            Cli::try_parse_from(whole)
        };
        for args in [
            &["create", "main"][..],
            &["list"],
            &["add-key", &id, "--name", "ci"],
            &["delete-key"],
            &["delete-key", "--sha256", &digest],
            &["delete", &id],
            &[
                "delete",
                &id,
                "--secrets-prefix",
                "ringback/stack",
                "--yes",
                "--force",
            ],
        ] {
            assert!(parse(args).is_ok(), "{args:?}");
        }
        for args in [
            &[][..],
            &["create"],
            &["add-key", &id],
            &["add-key", "main", "--name", "ci"],
            &["delete-key", "rb_1"],
            &["delete-key", "--key", "rb_1"],
            &["delete"],
            &["delete", "main"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
        assert!(Cli::try_parse_from(["ringback", "org", "list"]).is_err());
    }
}
