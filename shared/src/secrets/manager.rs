//! Secrets in AWS Secrets Manager. No type of the SDK leaves this module.
//!
//! An error says what the service said of the request, never what was in it or in the answer: the SDK's own texts of errors
//! may show the bytes of an answer that could not be read.

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use aws_sdk_secretsmanager::{
    Client, Config,
    error::{ProvideErrorMetadata, SdkError},
};

use super::{SecretStore, SecretsError};
use crate::aws::{self, Lazy};

/// Secrets in Secrets Manager, each named `{prefix}/{name}`.
#[derive(Debug, Clone)]
pub struct SecretsManager {
    client: Lazy<Client>,
    prefix: Arc<str>,
}

/// What went wrong with a request for a secret.
fn failed<E>(operation: &str, error: &SdkError<E>) -> SecretsError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let why = match error {
        SdkError::ServiceError(_) => match (error.code(), error.message()) {
            // It says which permission is missing.
            (Some(code @ "AccessDeniedException"), Some(message)) => format!("{code}: {message}"),
            (code, _) => code.unwrap_or("an unknown error").to_owned(),
        },
        SdkError::TimeoutError(_) => "there was no answer in time".to_owned(),
        SdkError::ResponseError(_) => "the answer cannot be read".to_owned(),
        // It did not get as far as an answer, and these texts are about connections and credentials.
        other => {
            let causes = std::iter::successors(other.source(), |&cause| cause.source());
            causes.fold(other.to_string(), |text, cause| format!("{text}: {cause}"))
        }
    };
    SecretsError(format!("{operation}: {why}"))
}

/// Whether the secret is on its way out: the service has no error of its own for it.
fn is_being_deleted(message: Option<&str>) -> bool {
    message.is_some_and(|message| message.contains("delet"))
}

impl SecretsManager {
    /// Secrets whose names begin with `prefix` and a slash.
    #[must_use]
    pub fn new(config: Config, prefix: &str) -> Self {
        Self {
            client: aws::lazy(|| Client::from_conf(config)),
            prefix: prefix.trim_end_matches('/').into(),
        }
    }

    fn id(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn being_deleted(&self, name: &str) -> SecretsError {
        SecretsError(format!(
            "the secret {} is marked for deletion: restore it, or wait until it is gone",
            self.id(name)
        ))
    }

    /// Replaces a secret; `false` when there is none.
    async fn replace(&self, name: &str, text: &str) -> Result<bool, SecretsError> {
        let request = self.client.put_secret_value().secret_id(self.id(name));
        let Err(error) = request.secret_string(text).send().await else {
            return Ok(true);
        };
        match error.as_service_error() {
            Some(refused) if refused.is_resource_not_found_exception() => Ok(false),
            Some(refused)
                if refused.is_invalid_request_exception() && is_being_deleted(refused.message()) =>
            {
                Err(self.being_deleted(name))
            }
            _ => Err(failed("PutSecretValue", &error)),
        }
    }
}

#[async_trait]
impl SecretStore for SecretsManager {
    async fn read(&self, name: &str) -> Result<Option<String>, SecretsError> {
        let request = self.client.get_secret_value().secret_id(self.id(name));
        match request.send().await {
            Ok(answer) => match answer.secret_string {
                Some(text) => Ok(Some(text)),
                None => Err(SecretsError(format!(
                    "the secret {} is not a text",
                    self.id(name)
                ))),
            },
            Err(error) => match error.as_service_error() {
                Some(refused) if refused.is_resource_not_found_exception() => Ok(None),
                Some(refused)
                    if refused.is_invalid_request_exception() && is_being_deleted(refused.message()) =>
                {
                    Ok(None)
                }
                _ => Err(failed("GetSecretValue", &error)),
            },
        }
    }

    async fn create(&self, name: &str, text: &str) -> Result<bool, SecretsError> {
        let request = self.client.create_secret().name(self.id(name));
        let request = request.description("Kept by Ringback; change it with Ringback's API only");
        let Err(error) = request.secret_string(text).send().await else {
            return Ok(true);
        };
        match error.as_service_error() {
            Some(refused) if refused.is_resource_exists_exception() => Ok(false),
            Some(refused)
                if refused.is_invalid_request_exception() && is_being_deleted(refused.message()) =>
            {
                Err(self.being_deleted(name))
            }
            _ => Err(failed("CreateSecret", &error)),
        }
    }

    async fn write(&self, name: &str, text: &str) -> Result<(), SecretsError> {
        // The last one is for a secret that somebody else made in between.
        if self.replace(name, text).await?
            || self.create(name, text).await?
            || self.replace(name, text).await?
        {
            return Ok(());
        }
        Err(SecretsError(format!(
            "the secret {} was made and deleted at the same time",
            self.id(name)
        )))
    }

    async fn delete(&self, name: &str) -> Result<(), SecretsError> {
        let request = self.client.delete_secret().secret_id(self.id(name));
        // What these belong to does not come back, so nobody is to restore them.
        let Err(error) = request.force_delete_without_recovery(true).send().await else {
            return Ok(());
        };
        match error.as_service_error() {
            Some(refused) if refused.is_resource_not_found_exception() => Ok(()),
            Some(refused)
                if refused.is_invalid_request_exception() && is_being_deleted(refused.message()) =>
            {
                Ok(())
            }
            _ => Err(failed("DeleteSecret", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread::{JoinHandle, spawn},
    };

    use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
    use serde_json::{Value, json};

    use super::*;

    /// Answers one connection with each status and body of `answers`; gives back the operations and what was asked.
    fn serve(answers: Vec<(u16, Value)>) -> (SecretsManager, JoinHandle<Vec<(String, Value)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = spawn(move || {
            let mut asked = Vec::new();
            for (status, answer) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut seen, mut buffer) = (String::new(), [0; 4096]);
                let (head, body) = loop {
                    let n = stream.read(&mut buffer).unwrap();
                    assert!(n > 0, "the request broke off: {seen}");
                    seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                    if let Some((head, body)) = seen.split_once("\r\n\r\n")
                        && let Ok(body) = serde_json::from_str::<Value>(body)
                    {
                        break (head.to_lowercase(), body);
                    }
                };
                let target = head
                    .lines()
                    .find_map(|line| line.strip_prefix("x-amz-target: secretsmanager."));
                asked.push((target.unwrap().to_owned(), body));
                let answer = answer.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close\r\n\
                     content-length: {}\r\n\r\n",
                    answer.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new("id", "key", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .endpoint_url(url)
            .build();
        (SecretsManager::new(config, "stage/"), server)
    }

    fn refusal(code: &str) -> (u16, Value) {
        (400, json!({ "__type": code }))
    }

    fn marked() -> (u16, Value) {
        let message = "You can't perform this operation on the secret because it was marked for deletion.";
        (
            400,
            json!({ "__type": "InvalidRequestException", "Message": message }),
        )
    }

    fn operations(server: JoinHandle<Vec<(String, Value)>>) -> Vec<String> {
        server
            .join()
            .unwrap()
            .into_iter()
            .map(|(operation, _)| operation)
            .collect()
    }

    #[tokio::test]
    async fn what_is_not_there_or_being_deleted_is_none() {
        let found = (200, json!({ "Name": "stage/org/a", "SecretString": "text" }));
        let (store, server) = serve(vec![found, refusal("ResourceNotFoundException"), marked()]);
        assert_eq!(store.read("org/a").await.unwrap().as_deref(), Some("text"));
        assert_eq!(store.read("org/a").await.unwrap(), None);
        assert_eq!(store.read("org/a").await.unwrap(), None);
        let asked = server.join().unwrap();
        assert_eq!(asked[0].0, "getsecretvalue");
        assert_eq!(asked[0].1["SecretId"], "stage/org/a");
    }

    #[tokio::test]
    async fn a_secret_is_made_once_and_written_whether_it_is_there_or_not() {
        let (done, absent) = ((200, json!({})), refusal("ResourceNotFoundException"));
        let exists = refusal("ResourceExistsException");
        let (store, server) = serve(vec![done.clone(), exists.clone()]);
        assert!(store.create("a", "text").await.unwrap());
        assert!(!store.create("a", "text").await.unwrap());
        let asked = server.join().unwrap();
        assert_eq!(
            (&*asked[0].0, &asked[0].1["Name"]),
            ("createsecret", &json!("stage/a"))
        );
        assert_eq!(asked[0].1["SecretString"], "text");

        let (store, server) = serve(vec![done.clone()]);
        store.write("a", "text").await.unwrap();
        assert_eq!(operations(server), ["putsecretvalue"]);
        let (store, server) = serve(vec![absent.clone(), done.clone()]);
        store.write("a", "text").await.unwrap();
        assert_eq!(operations(server), ["putsecretvalue", "createsecret"]);
        let (store, server) = serve(vec![absent, exists, done]);
        store.write("a", "text").await.unwrap();
        assert_eq!(
            operations(server),
            ["putsecretvalue", "createsecret", "putsecretvalue"]
        );
        let (store, _server) = serve(vec![marked()]);
        let error = store.write("a", "text").await.unwrap_err().to_string();
        assert!(error.contains("stage/a is marked for deletion"), "{error}");
    }

    #[tokio::test]
    async fn deleting_twice_is_deleting_once() {
        let (store, server) = serve(vec![
            (200, json!({})),
            refusal("ResourceNotFoundException"),
            marked(),
        ]);
        for _ in 0..3 {
            store.delete("a").await.unwrap();
        }
        let asked = server.join().unwrap();
        assert_eq!(asked[0].1["ForceDeleteWithoutRecovery"], true);
    }

    #[tokio::test]
    async fn an_error_shows_the_reason_and_no_secret() {
        let denied = json!({ "__type": "AccessDeniedException", "Message": "not authorized to perform it" });
        let echo = json!({ "__type": "ValidationException", "message": "whsec_1 is too odd" });
        // An answer that cannot be read: the text is a number.
        let odd = json!({ "SecretString": 5, "Name": "whsec_1" });
        let (store, server) = serve(vec![(400, denied), (400, echo), (200, odd)]);
        let error = store.read("a").await.unwrap_err().to_string();
        assert!(
            error.contains("GetSecretValue: AccessDeniedException: not authorized"),
            "{error}"
        );
        let error = store.write("a", "whsec_1").await.unwrap_err();
        assert!(error.to_string().contains("ValidationException"), "{error}");
        assert!(!format!("{error} {error:?}").contains("whsec_"), "{error:?}");
        let error = store.read("a").await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("whsec_"), "{error:?}");
        server.join().unwrap();
        // Nobody listens any more.
        let error = store.read("a").await.unwrap_err().to_string();
        assert!(error.contains("GetSecretValue: dispatch failure: "), "{error}");
    }
}
