//! A store, for threads that wait: requests run on a small runtime of their own, and whoever waits for one hears of the end of
//! the backup.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    ClientConfigKey, MultipartId, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::location::{Location, Scheme};
use super::words::words;
use crate::abort::Abort;
use crate::error::{Error, Result};

/// Threads that wait for the network. What costs time there is encryption.
const THREADS: usize = 2;

/// How often who waits looks whether the backup goes on.
const LOOK: Duration = Duration::from_millis(50);

/// How long a request may take. A part of 8 MB has 120 s at 70 kB/s.
const REQUEST: Duration = Duration::from_secs(120);

/// How long a request is sent again. Beyond five minutes its signature would be too old.
const AGAIN: Duration = Duration::from_secs(180);

/// How long one request may take that cleans up.
const CLEANUP: Duration = Duration::from_secs(60);

/// How long that waits for uploads to begin, so that they can be given up.
const BEGINNING: Duration = Duration::from_secs(10);

/// A prefix of a store, and how to get there.
pub struct Remote {
    /// None once it was dropped.
    runtime: Option<Runtime>,
    objects: Arc<dyn ObjectStore>,
    multipart: Arc<dyn MultipartStore>,
    location: Location,
    prefix: Path,
    abort: Arc<Abort>,
    tasks: Mutex<Tasks>,
    /// How many uploads were asked for and have no name yet.
    beginning: AtomicUsize,
    /// Nothing is sent any more but to clean up. Set under the lock of the tasks.
    is_over: AtomicBool,
}

/// Requests that write, under way, and some that are over.
type Tasks = Vec<AbortHandle>;

/// A request under way.
pub struct Pending<T>(Receiver<object_store::Result<T>>);

/// An object below the prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name there.
    pub name: String,
    /// In bytes.
    pub size: u64,
}

impl Remote {
    /// With what the environment says of credentials and addresses. Nothing is sent yet.
    pub fn open(location: &Location, abort: &Arc<Abort>) -> Result<Self> {
        let failed = |error: object_store::Error| {
            Error::local(format!("could not access \"{location}\": {}", words(&error)))
        };
        let bucket = &location.bucket;
        let retry = RetryConfig { retry_timeout: AGAIN, ..RetryConfig::default() };
        let timeout = format!("{} seconds", REQUEST.as_secs());
        let (objects, multipart): (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>) = match location.scheme {
            Scheme::S3 => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
                if std::env::var_os("AWS_TIMEOUT").is_none() {
                    let key = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
                    builder = builder.with_config(key, timeout);
                }
                let store = Arc::new(builder.build().map_err(failed)?);
                (Arc::clone(&store) as Arc<dyn ObjectStore>, store)
            }
            Scheme::Google => {
                let mut builder =
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
                if std::env::var_os("GOOGLE_TIMEOUT").is_none() {
                    let key = GoogleConfigKey::Client(ClientConfigKey::Timeout);
                    builder = builder.with_config(key, timeout);
                }
                let store = Arc::new(builder.build().map_err(failed)?);
                (Arc::clone(&store) as Arc<dyn ObjectStore>, store)
            }
            Scheme::Azure => {
                let mut builder =
                    MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
                if std::env::var_os("AZURE_TIMEOUT").is_none() {
                    let key = AzureConfigKey::Client(ClientConfigKey::Timeout);
                    builder = builder.with_config(key, timeout);
                }
                let store = Arc::new(builder.build().map_err(failed)?);
                (Arc::clone(&store) as Arc<dyn ObjectStore>, store)
            }
        };
        Self::new(objects, multipart, location, abort)
    }

    fn new(
        objects: Arc<dyn ObjectStore>,
        multipart: Arc<dyn MultipartStore>,
        location: &Location,
        abort: &Arc<Abort>,
    ) -> Result<Self> {
        let invalid = |_| Error::local(format!("invalid storage URL \"{location}\""));
        let prefix = Path::parse(&location.prefix).map_err(invalid)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .map_err(|error| Error::local(format!("could not start threads: {error}")))?;
        Ok(Self {
            runtime: Some(runtime),
            objects,
            multipart,
            location: location.clone(),
            prefix,
            abort: Arc::clone(abort),
            tasks: Mutex::default(),
            beginning: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    /// One that is nowhere but in memory.
    #[cfg(test)]
    pub fn in_memory(location: &Location, abort: &Arc<Abort>) -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        let objects = Arc::clone(&store) as Arc<dyn ObjectStore>;
        Self::new(objects, store, location, abort).unwrap()
    }

    /// What an object is called in a message.
    pub fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.location)
    }

    /// The prefix.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// All objects below the prefix, in no order.
    pub fn list(&self) -> Result<Vec<Object>> {
        let objects = Arc::clone(&self.objects);
        let prefix = self.prefix.clone();
        let listed = self.wait(self.send(async move {
            objects
                .list(Some(&prefix))
                .map_ok(|meta| (meta.location, meta.size))
                .try_collect::<Vec<_>>()
                .await
        }));
        let listed = listed.map_err(|error| self.failed("list objects below", None, error))?;
        Ok(listed
            .into_iter()
            .map(|(path, size)| {
                let whole = path.as_ref();
                let name = whole.strip_prefix(self.prefix.as_ref()).unwrap_or(whole);
                Object { name: name.trim_start_matches('/').to_owned(), size }
            })
            .collect())
    }

    /// All of an object; none if it is not there.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name)?);
        let got = self.wait(self.send(async move { objects.get(&path).await?.bytes().await }));
        match got {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(Failed::Store(object_store::Error::NotFound { .. })) => Ok(None),
            Err(error) => Err(self.failed("read", Some(name), error)),
        }
    }

    /// Asks for some bytes of an object.
    pub fn range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Pending<Vec<u8>>> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name)?);
        Ok(self.send(async move {
            match objects.get_range(&path, range.clone()).await {
                // The body of an answer may end before its time.
                Err(error) if may_pass(&error) => objects.get_range(&path, range).await,
                outcome => outcome,
            }
            .map(|bytes| bytes.to_vec())
        }))
    }

    /// Waits for that.
    pub fn ranged(&self, name: &str, pending: Pending<Vec<u8>>) -> Result<Vec<u8>> {
        self.wait(pending).map_err(|error| self.failed("read", Some(name), error))
    }

    /// The size of an object; none if it is not there.
    pub fn size(&self, name: &str) -> Result<Option<u64>> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name)?);
        match self.wait(self.send(async move { objects.head(&path).await })) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Failed::Store(object_store::Error::NotFound { .. })) => Ok(None),
            Err(error) => Err(self.failed("read", Some(name), error)),
        }
    }

    /// Writes an object, whatever is there.
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.put_as(name, bytes, PutMode::Overwrite).map_err(|error| self.failed("write", Some(name), error))
    }

    /// Writes an object that is not there yet; false if it is. A store that cannot promise this is only asked.
    pub fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        match self.put_as(name, bytes.clone(), PutMode::Create) {
            Ok(()) => Ok(true),
            Err(Failed::Store(
                object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
            )) => Ok(false),
            Err(Failed::Store(
                object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
            )) => {
                if self.size(name)?.is_some() {
                    return Ok(false);
                }
                self.put(name, bytes).map(|()| true)
            }
            Err(error) => Err(self.failed("write", Some(name), error)),
        }
    }

    /// Removes an object, which need not be there.
    pub fn delete(&self, name: &str) -> Result<()> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name)?);
        match self.wait(self.send(async move { objects.delete(&path).await })) {
            Ok(()) | Err(Failed::Store(object_store::Error::NotFound { .. })) => Ok(()),
            Err(error) => Err(self.failed("remove", Some(name), error)),
        }
    }

    /// Begins to upload an object in parts. Its id is noted before `end` looks for what was begun.
    pub fn begin(&self, name: &str, note: impl FnOnce(&MultipartId)) -> Result<MultipartId> {
        let (multipart, path) = (Arc::clone(&self.multipart), self.path(name)?);
        self.beginning.fetch_add(1, Ordering::SeqCst);
        // Whatever happens meanwhile: what was begun must be known, to be given up.
        let begun = self
            .send_write(async move { multipart.create_multipart(&path).await })
            .and_then(|pending| self.wait_for(pending, || Ok(())));
        if let Ok(id) = &begun {
            note(id);
        }
        self.beginning.fetch_sub(1, Ordering::SeqCst);
        begun.map_err(|error| self.failed("write", Some(name), error))
    }

    /// Sends one of the parts, numbered from 0. A second time if that fails: with the credentials of now.
    pub fn put_part(
        &self,
        name: &str,
        id: &MultipartId,
        number: usize,
        bytes: Vec<u8>,
    ) -> Result<Pending<PartId>> {
        let (multipart, path, id) = (Arc::clone(&self.multipart), self.path(name)?, id.clone());
        let payload = PutPayload::from(bytes);
        let sent = self.send_write(async move {
            match multipart.put_part(&path, &id, number, payload.clone()).await {
                Err(error) if may_pass(&error) => multipart.put_part(&path, &id, number, payload).await,
                outcome => outcome,
            }
        });
        sent.map_err(|error| self.failed("write", Some(name), error))
    }

    /// Waits for that.
    pub fn part(&self, name: &str, pending: Pending<PartId>) -> Result<PartId> {
        self.wait(pending).map_err(|error| self.failed("write", Some(name), error))
    }

    /// All parts, in their order, are the object.
    pub fn complete(&self, name: &str, id: &MultipartId, parts: Vec<PartId>, size: u64) -> Result<()> {
        let (multipart, path, upload) = (Arc::clone(&self.multipart), self.path(name)?, id.clone());
        let outcome = self
            .send_write(async move { multipart.complete_multipart(&path, &upload, parts).await })
            .and_then(|pending| self.wait(pending));
        // The answer to a first request may have been lost: then a second finds no upload, but the object.
        match (outcome, self.size(name)?) {
            (_, Some(found)) if found == size => Ok(()),
            (Err(error), _) => Err(self.failed("write", Some(name), error)),
            (Ok(_), found) => Err(Error::local(format!(
                "object \"{}\" has {} bytes after its upload, not {size}",
                self.shown(name),
                found.map_or_else(|| "no".to_owned(), |found| found.to_string())
            ))),
        }
    }

    /// Gives an upload up, which need not be there.
    pub fn give_up(&self, name: &str, id: &MultipartId) -> Result<()> {
        let (multipart, path, id) = (Arc::clone(&self.multipart), self.path(name)?, id.clone());
        match self.wait(self.send(async move { multipart.abort_multipart(&path, &id).await })) {
            Ok(()) | Err(Failed::Store(object_store::Error::NotFound { .. })) => Ok(()),
            Err(error) => Err(self.failed("abort the upload of", Some(name), error)),
        }
    }

    /// This is why the backup fails, whatever is heard of it elsewhere.
    pub fn fail(&self, error: &Error) {
        self.abort.fail(error.clone());
    }

    /// From now on only what cleans up is sent. When this returns nothing else is under way.
    pub fn end(&self) {
        let began = Instant::now();
        while self.beginning.load(Ordering::SeqCst) > 0 && began.elapsed() < BEGINNING {
            std::thread::sleep(Duration::from_millis(5));
        }
        let tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            self.is_over.store(true, Ordering::SeqCst);
            std::mem::take(&mut *tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
        while tasks.iter().any(|task| !task.is_finished()) && began.elapsed() < CLEANUP {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn put_as(&self, name: &str, bytes: Vec<u8>, mode: PutMode) -> std::result::Result<(), Failed> {
        let objects = Arc::clone(&self.objects);
        let path = self.path(name).map_err(Failed::Other)?;
        let options = PutOptions { mode, ..PutOptions::default() };
        self.send_write(async move { objects.put_opts(&path, PutPayload::from(bytes), options).await })
            .and_then(|pending| self.wait(pending))
            .map(drop)
    }

    /// Sends what writes, unless nothing is to be written any more.
    fn send_write<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> std::result::Result<Pending<T>, Failed> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over.load(Ordering::SeqCst) {
            return Err(Failed::Other(Error::aborted()));
        }
        let (pending, task) = self.spawn(request);
        tasks.retain(|task| !task.is_finished());
        tasks.extend(task);
        Ok(pending)
    }

    fn send<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Pending<T> {
        self.spawn(request).0
    }

    fn spawn<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> (Pending<T>, Option<AbortHandle>) {
        let (sender, receiver) = channel();
        let task = self.runtime.as_ref().map(|runtime| {
            // Nobody may wait for it any more.
            runtime.spawn(async move { drop(sender.send(request.await)) }).abort_handle()
        });
        (Pending(receiver), task)
    }

    /// Waits as long as the backup goes on; or, to clean up, some time.
    fn wait<T>(&self, pending: Pending<T>) -> std::result::Result<T, Failed> {
        if !self.is_over.load(Ordering::SeqCst) {
            return self.wait_for(pending, || self.abort.check());
        }
        let began = Instant::now();
        self.wait_for(pending, || {
            if began.elapsed() < CLEANUP { Ok(()) } else { Err(Error::local("the store does not answer")) }
        })
    }

    fn wait_for<T>(
        &self,
        pending: Pending<T>,
        look: impl Fn() -> Result<()>,
    ) -> std::result::Result<T, Failed> {
        loop {
            match pending.0.recv_timeout(LOOK) {
                Ok(outcome) => return outcome.map_err(Failed::Store),
                // Given up, or a panic.
                Err(RecvTimeoutError::Disconnected) => return Err(Failed::Other(Error::aborted())),
                Err(RecvTimeoutError::Timeout) => look().map_err(Failed::Other)?,
            }
        }
    }

    fn path(&self, name: &str) -> Result<Path> {
        let whole =
            if self.prefix.as_ref().is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Path::parse(&whole).map_err(|_| Error::local(format!("invalid object name \"{}\"", self.shown(name))))
    }

    fn failed(&self, what: &str, name: Option<&str>, error: Failed) -> Error {
        let shown = name.map_or_else(|| self.location.to_string(), |name| self.shown(name));
        match error {
            Failed::Store(error) => {
                let told = Error::local(format!("could not {what} \"{shown}\": {}", words(&error)));
                if may_pass(&error) { told.passing() } else { told }
            }
            Failed::Other(error) if error.kind() == crate::error::Kind::Aborted => error,
            Failed::Other(error) => error.context(format!("could not {what} \"{shown}\"")),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Without waiting for a name that is being looked up.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.location)
    }
}

/// Why a request has no result.
enum Failed {
    Store(object_store::Error),
    Other(Error),
}

/// Whether the same might succeed at another time: the network, or the server, failed, and did not refuse.
fn may_pass(error: &object_store::Error) -> bool {
    const STATUS: &str = "status code: ";
    let object_store::Error::Generic { .. } = error else { return false };
    // Of some requests nothing tells a refusal but this.
    let text = error.to_string();
    let status = text.split_once(STATUS).and_then(|(_, behind)| behind.get(..3));
    !status.is_some_and(|status| status.starts_with('4') && !matches!(status, "408" | "429"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass() {
        let generic =
            |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        for text in
            ["connection reset", "status code: 500 x", "status code: 429 Slow Down", "status code: 408 x"]
        {
            assert!(may_pass(&generic(text)), "{text}");
        }
        assert!(!may_pass(&generic("Server returned non-2xx status code: 403 Forbidden: <Error>")));
        assert!(!may_pass(&object_store::Error::NotFound { path: String::new(), source: "x".into() }));
    }
}
