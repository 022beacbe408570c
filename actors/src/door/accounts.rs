//! The users of a master: read from their files when it starts, and again when somebody asks for that.
//!
//! Owns nothing: the users of now are in `dsm_protocol::acl::Accounts`, which all connections share.

use super::Context;
use crate::config::MasterConfig;
use crate::env::{Env, OpenMode};
use crate::node_error::NodeError;
use dsm_protocol::acl::{Accounts, Users, USERS_FILE_BYTES_MAX};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The longest password in a file, in bytes.
const PASSWORD_BYTES_MAX: usize = 4096;

/// How many wrong lines of a file are told.
const FAULTS_TOLD: usize = 5;

/// The users that the settings name, for all connections of a master.
///
/// # Errors
/// `File` and `Users`.
pub(crate) async fn open(env: &Env, config: &MasterConfig) -> Result<Rc<Accounts>, NodeError> {
    let (users, env) = (read_users(env, config).await?, Rc::clone(env));
    Ok(Rc::new(Accounts::new(users, move || env.now())))
}

async fn read_users(env: &Env, config: &MasterConfig) -> Result<Users, NodeError> {
    let mut users = match &config.users_file {
        None => Users::default(),
        Some(path) => {
            let text = read(env, path, USERS_FILE_BYTES_MAX).await?;
            parse(env, path, text).await?
        }
    };
    if let Some(path) = &config.password_file {
        let text = read(env, path, PASSWORD_BYTES_MAX).await?;
        let password = text.strip_suffix(b"\n").unwrap_or(&text);
        let password = password.strip_suffix(b"\r").unwrap_or(password);
        if password.is_empty() {
            return Err(wrong(path, "it is empty: a password is its only line"));
        }
        if password.contains(&b'\n') {
            return Err(wrong(path, "it has several lines: a password is its only line"));
        }
        users = users.and_password(password);
    }
    Ok(users)
}

fn wrong(path: &Path, what: impl Into<String>) -> NodeError {
    NodeError::Users { path: path.to_owned(), what: what.into() }
}

async fn read(env: &Env, path: &Path, bytes_max: usize) -> Result<Vec<u8>, NodeError> {
    let disk = env.disk();
    if let Ok(Some(mode)) = disk.others_may_read(path).await {
        log::warn!(
            "secrets can be read by others path={} mode={mode:o}: `chmod 600` keeps them to their owner",
            path.display()
        );
    }
    let failed = |error: io::Error| NodeError::file(path, error);
    disk.read_small(path, bytes_max).await.map_err(failed)
}

/// Parses the text of a file of users, which may take a while.
async fn parse(env: &Env, path: &Path, text: Vec<u8>) -> Result<Users, NodeError> {
    let text = String::from_utf8(text).map_err(|_| wrong(path, "it is not UTF-8"))?;
    let failed = |error: io::Error| NodeError::file(path, error);
    let (answer, parsed) = oneshot::channel();
    let work = move || drop(answer.send(Users::parse(&text)));
    compute(env, path, work).await.map_err(failed)?;
    let parsed = parsed.await.map_err(|error| failed(io::Error::other(error)))?;
    parsed.map_err(|faults| {
        let told: Vec<String> = faults.iter().take(FAULTS_TOLD).map(ToString::to_string).collect();
        let more = match faults.len() - told.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        wrong(path, format!("{}{more}", told.join("; ")))
    })
}

/// Reads the users anew; gives the answer to who has asked for that.
pub(super) async fn load(context: &Context) -> Vec<u8> {
    if context.config.users_file.is_none() {
        return b"-ERR this server is not configured to use an ACL file: start it with --users-file\r\n"
            .to_vec();
    }
    match read_anew(context).await {
        Ok(()) => b"+OK\r\n".to_vec(),
        Err(why) => {
            let line = why.replace(['\r', '\n'], " ");
            format!("-ERR {line}; no change to the users was made\r\n").into_bytes()
        }
    }
}

/// Reads the users anew, for all connections. If a file is of no use they stay, and that is logged.
///
/// # Errors
/// What is wrong.
pub(crate) async fn read_anew(context: &Context) -> Result<(), String> {
    let ticket = context.switchboard.accounts.ticket();
    match read_users(&context.env, &context.config).await {
        Ok(users) => {
            log::info!("users read anew count={}", users.iter().count());
            free(context, context.switchboard.accounts.replace(ticket, users)).await;
            Ok(())
        }
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            log::error!("users stay as they were: {error}{cause}");
            Err(format!("{error}{cause}"))
        }
    }
}

/// Frees users elsewhere: of thousands, that takes long.
async fn free(context: &Context, users: Arc<Users>) {
    if let Some(path) = &context.config.users_file {
        // Without the file it is done here.
        let _ = compute(&context.env, path, move || drop(users)).await;
    }
}

/// Does `work` on the thread of the file at `path`.
async fn compute(env: &Env, path: &Path, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let file = env.disk().open(path, OpenMode::Read).await?;
    file.compute(Box::new(work)).await
}
