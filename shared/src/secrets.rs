//! Secrets: those of endpoints and those of an organization's outgoing hooks. They are in Secrets Manager on AWS, in files for
//! their owner only on a laptop, and never in the table.
//!
//! What is read is used for a minute, so a change made by another process counts here within that time. Where a minute is
//! too long there are [`Secrets::endpoint_anew`], for a signature that does not fit, and [`Secrets::stored`], for whoever
//! shows or changes them.

mod manager;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub use self::manager::SecretsManager;
use crate::{
    clock::{SharedClock, SystemClock},
    ids,
    signature::Scheme,
    webhook::{Secret, SecretError},
};

/// A secret could not be read or written. The text never holds one.
#[derive(Debug, thiserror::Error)]
#[error("the secrets' store is unavailable: {0}")]
pub struct SecretsError(String);

impl From<io::Error> for SecretsError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Where secrets are kept, each a text under a name of letters, digits, `-` and `/`.
#[async_trait]
pub trait SecretStore: fmt::Debug + Send + Sync {
    /// Reads a secret. It may be an older text for a moment after somebody else wrote.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn read(&self, name: &str) -> Result<Option<String>, SecretsError>;

    /// Makes a secret; `false` when there is one already, which stays as it is.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn create(&self, name: &str, text: &str) -> Result<bool, SecretsError>;

    /// Makes or replaces a secret.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn write(&self, name: &str, text: &str) -> Result<(), SecretsError>;

    /// Forgets a secret, if it is there.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn delete(&self, name: &str) -> Result<(), SecretsError>;
}

/// Secrets in a folder, a file each, readable for their owner only; without a folder, in memory. One process owns the folder.
#[derive(Default)]
pub struct LocalSecrets {
    folder: Option<PathBuf>,
    /// Held while a file is written as well.
    memory: Mutex<HashMap<String, String>>,
}

impl fmt::Debug for LocalSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSecrets")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl LocalSecrets {
    /// Secrets in `folder`, which is made when the first one is written.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            memory: Mutex::default(),
        }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(name.replace('/', "_")))
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes `text` beside `file`, whole and for its owner only; gives where. What is then put in the file's place by one step of
/// the file system is never half a secret, whenever the process or the machine stops.
fn write_beside(file: &Path, text: &str) -> io::Result<PathBuf> {
    if let Some(folder) = file.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder)?;
    }
    let beside = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut opened = options.open(&beside)?;
    io::Write::write_all(&mut opened, text.as_bytes())?;
    opened.sync_all()?;
    Ok(beside)
}

fn if_there<T>(result: io::Result<T>) -> Result<Option<T>, SecretsError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl SecretStore for LocalSecrets {
    async fn read(&self, name: &str) -> Result<Option<String>, SecretsError> {
        match self.file(name) {
            Some(file) => if_there(std::fs::read_to_string(file)),
            None => Ok(self.memory().get(name).cloned()),
        }
    }

    async fn create(&self, name: &str, text: &str) -> Result<bool, SecretsError> {
        let mut memory = self.memory();
        let Some(file) = self.file(name) else {
            let absent = !memory.contains_key(name);
            if absent {
                memory.insert(name.to_owned(), text.to_owned());
            }
            return Ok(absent);
        };
        let beside = write_beside(&file, text)?;
        // Unlike a rename, a link does not replace what is there.
        let linked = std::fs::hard_link(&beside, &file);
        std::fs::remove_file(&beside)?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(&self, name: &str, text: &str) -> Result<(), SecretsError> {
        let mut memory = self.memory();
        match self.file(name) {
            Some(file) => Ok(std::fs::rename(write_beside(&file, text)?, file)?),
            None => {
                memory.insert(name.to_owned(), text.to_owned());
                Ok(())
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<(), SecretsError> {
        let mut memory = self.memory();
        match self.file(name) {
            Some(file) => if_there(std::fs::remove_file(file)).map(|_| ()),
            None => {
                memory.remove(name);
                Ok(())
            }
        }
    }
}

/// A secret that webhooks may be signed with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningSecret {
    /// Names it where the secret itself is not shown.
    pub id: Uuid,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// The secret as its scheme writes it: `whsec_` and its base64 for what Ringback signs.
    pub secret: String,
}

impl SigningSecret {
    /// A new secret with the id `id`, made at `now` (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate(id: Uuid, now: i64) -> Result<Self, getrandom::Error> {
        Ok(Self {
            id,
            created_at: now,
            secret: Secret::generate()?.to_text(),
        })
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the secret.
        f.debug_struct("SigningSecret")
            .field("id", &self.id)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

/// The most signing secrets that an owner may have at a time: a rotation needs two.
pub const MAX_SIGNING_SECRETS: usize = 5;

/// What is kept as one text under the id of its owner.
pub trait SecretSet: Serialize + DeserializeOwned + Send + Sync {
    /// What an owner is called in messages, with its article.
    const OWNER: &'static str;

    /// The name of the secret that it is kept as.
    fn name(owner: Uuid) -> String;

    /// What webhooks may be signed with, oldest first.
    fn signing(&mut self) -> &mut Vec<SigningSecret>;

    /// The number of the change that wrote it: 0 as it was made.
    ///
    /// No store of secrets has a conditional write. So whoever changes secrets takes the next number from the table first
    /// ([`Store::claim_revision`](crate::store::Store::claim_revision)) and writes it along. A text with an older number than
    /// the table's says that somebody has not finished.
    fn revision(&mut self) -> &mut u64;
}

fn parsed(signing: &[SigningSecret]) -> Result<Vec<Secret>, SecretError> {
    signing
        .iter()
        .map(|signing| Secret::parse(&signing.secret))
        .collect()
}

/// Everything about an endpoint that nobody may read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSecrets {
    /// The key for requests to the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// How its webhooks are signed.
    #[serde(default)]
    pub signature: Scheme,
    /// What its webhooks may be signed with, oldest first.
    pub signing: Vec<SigningSecret>,
    /// What authenticates correlation values: 32 bytes in base64. It never changes, because calls live longer than a change.
    correlation_key: String,
    #[serde(default)]
    revision: u64,
}

impl fmt::Debug for EndpointSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSecrets")
            .field("signature", &self.signature)
            .field("signing", &self.signing)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl EndpointSecrets {
    /// The secrets of a new endpoint, with a new key for correlation values. Without `signing` its webhooks are believed only where
    /// they are signed with its key.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(
        api_key: Option<String>,
        signature: Scheme,
        signing: Option<SigningSecret>,
    ) -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self {
            api_key,
            signature,
            signing: signing.into_iter().collect(),
            correlation_key: STANDARD.encode(key),
            revision: 0,
        })
    }

    /// The secrets of a new endpoint of the generic contract, with one to sign with.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate(api_key: Option<String>, id: Uuid, now: i64) -> Result<Self, getrandom::Error> {
        let signing = SigningSecret::generate(id, now)?;
        Self::new(api_key, Scheme::StandardWebhooks, Some(signing))
    }

    /// The secrets that a delivery may be signed with. Retell signs with the key that requests to it have.
    #[must_use]
    pub fn accepted(&self) -> Vec<&str> {
        let key = self.api_key.as_deref();
        let key = key.filter(|_| self.signature == Scheme::Retell);
        let signing = self.signing.iter().map(|signing| signing.secret.as_str());
        signing.chain(key).collect()
    }

    /// Whether its secrets are secrets of `scheme`, too: what one sender signs with, or even shows, is no secret of another.
    #[must_use]
    pub fn fit(&self, scheme: &Scheme) -> bool {
        let (old, new) = (self.signature.profile(), scheme.profile());
        let same = std::mem::discriminant(&self.signature) == std::mem::discriminant(scheme);
        let mut secrets = self.signing.iter();
        same && (old.algorithm, old.key_encoding) == (new.algorithm, new.key_encoding)
            && secrets.all(|signing| scheme.check_secret(&signing.secret).is_ok())
    }

    /// Whether deliveries are signed in the same way and may be signed with the same secrets as with `other`.
    #[must_use]
    pub fn signs_like(&self, other: &Self) -> bool {
        self.signature == other.signature && self.accepted() == other.accepted()
    }

    /// The headers that make its provider's webhooks believed where the provider only repeats what it is told: their names in lower
    /// case, and values with the newest secret.
    #[must_use]
    pub fn hook_headers(&self) -> Vec<(String, String)> {
        let newest = self.signing.last().map(|signing| signing.secret.as_str());
        newest
            .and_then(|secret| self.signature.plain_header(secret))
            .into_iter()
            .collect()
    }

    /// The key that authenticates correlation values.
    #[must_use]
    pub fn correlation_key(&self) -> Option<[u8; 32]> {
        STANDARD.decode(&self.correlation_key).ok()?.try_into().ok()
    }
}

impl SecretSet for EndpointSecrets {
    const OWNER: &'static str = "an endpoint";

    fn name(owner: Uuid) -> String {
        format!("endpoint/{owner}")
    }

    fn signing(&mut self) -> &mut Vec<SigningSecret> {
        &mut self.signing
    }

    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }
}

/// The secrets of an organization's outgoing hooks.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrgHooks {
    /// What its hooks are signed with, oldest first. Each delivery is signed with all of them, so that a receiver may know any.
    pub signing: Vec<SigningSecret>,
    /// What webhooks show as it is, beside their signature, in a shape whose receivers expect that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
    /// What the webhooks to those who listen are signed with who have a secret of their own, by their ids, in standard base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub listeners: BTreeMap<Uuid, String>,
    #[serde(default)]
    revision: u64,
}

impl fmt::Debug for OrgHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgHooks")
            .field("signing", &self.signing)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl OrgHooks {
    /// The secrets of an organization that has none yet: one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate(id: Uuid, now: i64) -> Result<Self, getrandom::Error> {
        Ok(Self {
            signing: vec![SigningSecret::generate(id, now)?],
            shown: None,
            listeners: BTreeMap::new(),
            revision: 0,
        })
    }

    /// What a webhook is signed with: the organization's secrets, or the own secret of the `listener` that it goes to. Nothing
    /// where that one was deleted.
    ///
    /// # Errors
    /// When what is stored is no secret.
    pub fn secrets_of(&self, listener: Option<Uuid>) -> Result<Vec<Secret>, SecretError> {
        match listener {
            Some(id) => {
                let own = self.listeners.get(&id);
                let own = own.map(|own| Secret::parse(&format!("whsec_{own}")));
                Ok(own.transpose()?.into_iter().collect())
            }
            None => self.secrets(),
        }
    }

    /// The secrets that a delivery is signed with, all of them.
    ///
    /// # Errors
    /// When what is stored is no secret.
    pub fn secrets(&self) -> Result<Vec<Secret>, SecretError> {
        parsed(&self.signing)
    }
}

impl SecretSet for OrgHooks {
    const OWNER: &'static str = "an organization";

    fn name(owner: Uuid) -> String {
        format!("org/{owner}")
    }

    fn signing(&mut self) -> &mut Vec<SigningSecret> {
        &mut self.signing
    }

    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }
}

/// How many texts a process keeps.
const KEPT: usize = 256;
/// How long a text is used, in milliseconds.
const USED_MS: i64 = 60_000;
/// How long one is used that may be the reason for a refusal, and how long an absent secret is taken for absent, in
/// milliseconds. However often secrets are doubted, the store is asked no more often than that.
const ANEW_MS: i64 = 5_000;

/// What the store said, and when it was asked, in milliseconds since the Unix epoch.
#[derive(Clone)]
struct Kept {
    text: Option<Arc<str>>,
    at: i64,
}

/// The secrets of endpoints and organizations. Cloning is cheap, and clones share what they have read.
#[derive(Debug, Clone)]
pub struct Secrets {
    store: Arc<dyn SecretStore>,
    clock: SharedClock,
    // Its debug output does not show what is in it.
    kept: Arc<Cache<String, Kept>>,
}

impl Secrets {
    /// The secrets in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn SecretStore>) -> Self {
        Self::with_clock(store, Arc::new(SystemClock))
    }

    /// The secrets in `store`; `clock` decides how old is what was read before. It is the clock on the wall, for one that
    /// counts may stand still while a function is frozen.
    #[must_use]
    pub fn with_clock(store: Arc<dyn SecretStore>, clock: SharedClock) -> Self {
        Self {
            store,
            clock,
            kept: Arc::new(Cache::new(KEPT)),
        }
    }

    fn parse<T: SecretSet>(owner: Uuid, text: &str) -> Result<T, SecretsError> {
        // The parser's error would show a part of the secret.
        serde_json::from_str(text)
            .map_err(|_| SecretsError(format!("the secret {} cannot be understood", T::name(owner))))
    }

    fn text<T: SecretSet>(secrets: &T) -> Result<String, SecretsError> {
        serde_json::to_string(secrets).map_err(|error| SecretsError(error.to_string()))
    }

    /// Secrets that were read at most `longest_ms` ago. Of those who want the same at the same time, one asks the store.
    async fn read<T: SecretSet>(&self, owner: Uuid, longest_ms: i64) -> Result<Option<T>, SecretsError> {
        let name = T::name(owner);
        let now = self.clock.now_ms();
        self.kept.remove_if(name.as_str(), |kept| {
            let limit = if kept.text.is_some() { longest_ms } else { ANEW_MS };
            // What is from the future is from before the clock was set.
            !(0..limit).contains(&(now - kept.at))
        });
        let ask = async {
            let at = self.clock.now_ms();
            let text = self.store.read(&name).await?.map(Arc::from);
            Ok::<_, SecretsError>(Kept { text, at })
        };
        let kept = self.kept.get_or_insert_async(name.as_str(), ask).await?;
        kept.text.map(|text| Self::parse(owner, &text)).transpose()
    }

    /// Secrets as the store has them now.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else.
    pub async fn stored<T: SecretSet>(&self, owner: Uuid) -> Result<Option<T>, SecretsError> {
        let text = self.store.read(&T::name(owner)).await?;
        text.map(|text| Self::parse(owner, &text)).transpose()
    }

    /// Makes secrets, unless there are some; gives those that there are.
    async fn ensure<T: SecretSet>(&self, owner: Uuid, made: T) -> Result<T, SecretsError> {
        let name = T::name(owner);
        let text = Self::text(&made)?;
        let at = self.clock.now_ms();
        if self.store.create(&name, &text).await? {
            self.keep(name, &Ok(()), Some(text.into()), at);
            return Ok(made);
        }
        // Somebody was faster, so this process may remember that there is none.
        self.kept.remove(name.as_str());
        self.stored(owner).await?.ok_or_else(|| {
            SecretsError(format!(
                "the secret {name} was made just now and cannot be read yet"
            ))
        })
    }

    /// Writes secrets.
    ///
    /// # Errors
    /// When the store cannot be reached. Then they may have been written or not.
    pub async fn put<T: SecretSet>(&self, owner: Uuid, secrets: &T) -> Result<(), SecretsError> {
        let name = T::name(owner);
        let text = Self::text(secrets)?;
        let at = self.clock.now_ms();
        let written = self.store.write(&name, &text).await;
        self.keep(name, &written, Some(text.into()), at);
        written
    }

    /// Forgets secrets, if there are some.
    ///
    /// # Errors
    /// When the store cannot be reached. Then they may have been forgotten or not.
    pub async fn delete<T: SecretSet>(&self, owner: Uuid) -> Result<(), SecretsError> {
        let name = T::name(owner);
        let at = self.clock.now_ms();
        let deleted = self.store.delete(&name).await;
        self.keep(name, &deleted, None, at);
        deleted
    }

    /// Keeps what this process has written, which the store may be slow to show. A read that is under way keeps nothing then.
    fn keep(&self, name: String, written: &Result<(), SecretsError>, text: Option<Arc<str>>, at: i64) {
        match written {
            Ok(()) => self.kept.insert(name, Kept { text, at }),
            Err(_) => {
                self.kept.remove(name.as_str());
            }
        }
    }

    /// An endpoint's secrets, as they were within the last minute.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else.
    pub async fn endpoint(&self, id: Uuid) -> Result<Option<EndpointSecrets>, SecretsError> {
        self.read(id, USED_MS).await
    }

    /// An endpoint's secrets, as they were within the last 5 seconds: for who has reason to believe that they changed.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else.
    pub async fn endpoint_anew(&self, id: Uuid) -> Result<Option<EndpointSecrets>, SecretsError> {
        self.read(id, ANEW_MS).await
    }

    /// Writes an endpoint's secrets.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn put_endpoint(&self, id: Uuid, secrets: &EndpointSecrets) -> Result<(), SecretsError> {
        self.put(id, secrets).await
    }

    /// Forgets an endpoint's secrets.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn delete_endpoint(&self, id: Uuid) -> Result<(), SecretsError> {
        self.delete::<EndpointSecrets>(id).await
    }

    /// The secrets of an organization's outgoing hooks, as they were within the last minute.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else.
    pub async fn org_hooks(&self, org: Uuid) -> Result<Option<OrgHooks>, SecretsError> {
        self.read(org, USED_MS).await
    }

    /// The same as they were within the last 5 seconds: for who misses one that may have been added since.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else.
    pub async fn org_hooks_anew(&self, org: Uuid) -> Result<Option<OrgHooks>, SecretsError> {
        self.read(org, ANEW_MS).await
    }

    /// The secrets of an organization's outgoing hooks, which are made if there are none; `now` is in milliseconds since the
    /// Unix epoch. Whoever asks at the same time gets the same.
    ///
    /// # Errors
    /// When the store cannot be reached or holds something else, or the system has no random numbers.
    pub async fn ensure_org_hooks(&self, org: Uuid, now: i64) -> Result<OrgHooks, SecretsError> {
        if let Some(hooks) = self.org_hooks(org).await? {
            return Ok(hooks);
        }
        let made = OrgHooks::generate(ids::new_id(now), now)
            .map_err(|error| SecretsError(format!("there are no random numbers: {error}")))?;
        self.ensure(org, made).await
    }

    /// Writes the secrets of an organization's outgoing hooks.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn put_org_hooks(&self, org: Uuid, hooks: &OrgHooks) -> Result<(), SecretsError> {
        self.put(org, hooks).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use super::*;
    use crate::clock::Clock;

    /// A store that counts how often it is asked.
    #[derive(Debug, Default)]
    struct Counted {
        inner: LocalSecrets,
        reads: AtomicUsize,
    }

    impl Counted {
        fn reads(&self) -> usize {
            self.reads.swap(0, Ordering::Relaxed)
        }
    }

    #[async_trait]
    impl SecretStore for Counted {
        async fn read(&self, name: &str) -> Result<Option<String>, SecretsError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            // Others come in between.
            tokio::task::yield_now().await;
            self.inner.read(name).await
        }

        async fn create(&self, name: &str, text: &str) -> Result<bool, SecretsError> {
            self.inner.create(name, text).await
        }

        async fn write(&self, name: &str, text: &str) -> Result<(), SecretsError> {
            self.inner.write(name, text).await
        }

        async fn delete(&self, name: &str) -> Result<(), SecretsError> {
            self.inner.delete(name).await
        }
    }

    #[derive(Debug, Default)]
    struct Hand(AtomicI64);

    impl Hand {
        fn forward(&self, ms: i64) {
            self.0.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clock for Hand {
        fn now_ms(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Two processes on one store, with the same clock.
    fn two() -> (Arc<Counted>, Arc<Hand>, Secrets, Secrets) {
        let (store, clock) = (Arc::<Counted>::default(), Arc::<Hand>::default());
        let secrets = || Secrets::with_clock(store.clone(), clock.clone());
        let (here, there) = (secrets(), secrets());
        (store, clock, here, there)
    }

    fn made() -> EndpointSecrets {
        EndpointSecrets::generate(None, Uuid::now_v7(), 5).unwrap()
    }

    #[tokio::test]
    async fn secrets_are_kept_in_files_for_their_owner_or_in_memory() {
        let folder = std::env::temp_dir().join(format!("ringback-secrets-{}", Uuid::now_v7()));
        for secrets in [
            Secrets::new(Arc::new(LocalSecrets::new(Some(folder.clone())))),
            Secrets::new(Arc::new(LocalSecrets::default())),
        ] {
            let id = Uuid::now_v7();
            assert!(secrets.endpoint(id).await.unwrap().is_none());
            let mut made = EndpointSecrets::generate(Some("key".into()), Uuid::nil(), 5).unwrap();
            secrets.put_endpoint(id, &made).await.unwrap();
            let read = secrets.endpoint(id).await.unwrap().unwrap();
            assert_eq!(read.signing.len(), 1);
            assert_eq!(read.correlation_key(), made.correlation_key());
            assert!(read.correlation_key().is_some());
            assert_eq!(read.api_key.as_deref(), Some("key"));
            made.signing.push(read.signing[0].clone());
            secrets.put_endpoint(id, &made).await.unwrap();
            assert_eq!(secrets.endpoint(id).await.unwrap().unwrap().signing.len(), 2);
            let stored: EndpointSecrets = secrets.stored(id).await.unwrap().unwrap();
            assert_eq!(stored.signing.len(), 2);
            secrets.delete_endpoint(id).await.unwrap();
            secrets.delete_endpoint(id).await.unwrap();
            assert!(secrets.endpoint(id).await.unwrap().is_none());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let store = LocalSecrets::new(Some(folder.clone()));
            store.write("endpoint/a", "x").await.unwrap();
            assert!(store.create("endpoint/b", "x").await.unwrap());
            let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(folder.clone()), 0o700);
            assert_eq!(mode(folder.join("endpoint_a")), 0o600);
            assert_eq!(mode(folder.join("endpoint_b")), 0o600);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn what_is_there_is_not_made_again() {
        let folder = std::env::temp_dir().join(format!("ringback-secrets-{}", Uuid::now_v7()));
        for store in [LocalSecrets::new(Some(folder.clone())), LocalSecrets::default()] {
            assert!(store.create("org/a", "first").await.unwrap());
            assert!(!store.create("org/a", "second").await.unwrap());
            assert_eq!(store.read("org/a").await.unwrap().as_deref(), Some("first"));
            store.delete("org/a").await.unwrap();
            assert!(store.create("org/a", "third").await.unwrap());
            assert_eq!(store.read("org/a").await.unwrap().as_deref(), Some("third"));
        }
        let files = std::fs::read_dir(&folder).unwrap().count();
        assert_eq!(files, 1, "nothing is left beside a secret");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_secret_is_read_once_a_minute_and_anew_once_in_five_seconds() {
        let (store, clock, here, there) = two();
        let id = Uuid::now_v7();
        let mut secrets = made();
        there.put_endpoint(id, &secrets).await.unwrap();
        let read = futures_util::future::join_all((0..10).map(|_| here.endpoint(id))).await;
        assert!(read.into_iter().all(|read| read.unwrap().is_some()));
        assert_eq!(
            store.reads(),
            1,
            "of all who ask at the same time, one asks the store"
        );

        // One is added over there.
        secrets
            .signing
            .push(SigningSecret::generate(Uuid::now_v7(), 6).unwrap());
        there.put_endpoint(id, &secrets).await.unwrap();
        assert_eq!(there.endpoint(id).await.unwrap().unwrap().signing.len(), 2);
        clock.forward(ANEW_MS - 1);
        for _ in 0..100 {
            let anew = here.endpoint_anew(id).await.unwrap().unwrap();
            assert_eq!(anew.signing.len(), 1, "a flood of wrong signatures");
        }
        assert_eq!(store.reads(), 0);
        clock.forward(1);
        let old = here.endpoint(id).await.unwrap().unwrap();
        let anew = here.endpoint_anew(id).await.unwrap().unwrap();
        assert_eq!((old.signing.len(), anew.signing.len(), store.reads()), (1, 2, 1));
        assert!(!old.signs_like(&anew) && anew.signs_like(&secrets));

        // One is taken away over there.
        secrets.signing.remove(0);
        there.put_endpoint(id, &secrets).await.unwrap();
        clock.forward(USED_MS - 1);
        assert_eq!(here.endpoint(id).await.unwrap().unwrap().signing.len(), 2);
        clock.forward(1);
        assert_eq!(here.endpoint(id).await.unwrap().unwrap().signing.len(), 1);
        assert_eq!(store.reads(), 1);
        // The clock is set back.
        clock.forward(-1_000_000);
        assert!(here.endpoint(id).await.unwrap().is_some());
        assert_eq!(store.reads(), 1);
    }

    #[tokio::test]
    async fn an_absent_secret_is_looked_for_again_soon() {
        let (store, clock, here, there) = two();
        let id = Uuid::now_v7();
        for _ in 0..10 {
            assert!(here.endpoint(id).await.unwrap().is_none());
        }
        assert_eq!(store.reads(), 1);
        there.put_endpoint(id, &made()).await.unwrap();
        clock.forward(ANEW_MS);
        assert!(here.endpoint(id).await.unwrap().is_some());
        // What this process deletes is gone for it at once.
        here.delete_endpoint(id).await.unwrap();
        assert!(here.endpoint(id).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_read_that_a_write_overtakes_is_not_kept() {
        let (_, _, here, _) = two();
        let id = Uuid::now_v7();
        let mut secrets = made();
        here.put_endpoint(id, &secrets).await.unwrap();
        here.kept.clear();
        let text = Secrets::text(&secrets).unwrap();
        secrets
            .signing
            .push(SigningSecret::generate(Uuid::now_v7(), 6).unwrap());
        // The store has answered, but the answer has not come yet.
        let name = EndpointSecrets::name(id);
        let late = here.kept.get_or_insert_async(name.as_str(), async {
            here.put_endpoint(id, &secrets).await?;
            Ok::<_, SecretsError>(Kept {
                text: Some(text.into()),
                at: 0,
            })
        });
        late.await.unwrap();
        assert_eq!(here.endpoint(id).await.unwrap().unwrap().signing.len(), 2);
    }

    #[tokio::test]
    async fn an_organization_has_one_set_of_secrets_whoever_asks_first() {
        let (_, clock, here, there) = two();
        let org = Uuid::now_v7();
        assert!(here.org_hooks(org).await.unwrap().is_none());
        assert!(there.org_hooks(org).await.unwrap().is_none());
        let first = here.ensure_org_hooks(org, 1_700_000_000_000).await.unwrap();
        // It has seen that there is none.
        let second = there.ensure_org_hooks(org, 1_700_000_000_000).await.unwrap();
        assert_eq!(first.signing.len(), 1);
        assert_eq!(first.signing[0].secret, second.signing[0].secret);
        assert!(
            here.org_hooks(org).await.unwrap().is_some() && there.org_hooks(org).await.unwrap().is_some()
        );
        let mut more = second;
        more.signing
            .push(SigningSecret::generate(Uuid::now_v7(), 6).unwrap());
        there.put_org_hooks(org, &more).await.unwrap();
        clock.forward(USED_MS);
        let read = here.ensure_org_hooks(org, 1_700_000_000_000).await.unwrap();
        assert_eq!(read.signing.len(), 2);
    }

    #[tokio::test]
    async fn nothing_shows_a_secret() {
        let (_, _, here, _) = two();
        let id = Uuid::now_v7();
        let endpoint = EndpointSecrets::generate(Some("the-key".into()), id, 5).unwrap();
        here.put_endpoint(id, &endpoint).await.unwrap();
        let hooks = here.ensure_org_hooks(id, 5).await.unwrap();
        here.org_hooks(id).await.unwrap();
        let shown = format!("{endpoint:?} {hooks:?} {here:?}");
        assert!(shown.contains(&id.to_string()), "{shown}");
        assert!(!shown.contains("whsec") && !shown.contains("the-key"), "{shown}");
        assert!(!shown.contains(&endpoint.correlation_key), "{shown}");
        // Neither does what is no secret any more.
        let name = EndpointSecrets::name(id);
        here.store
            .write(&name, "{\"signing\": \"whsec_5\"}")
            .await
            .unwrap();
        let error = here.stored::<EndpointSecrets>(id).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("whsec"), "{error:?}");
    }
}
