//! A node's certificates while it runs: read at its start and whenever it is asked to, and told of before they end.
//!
//! What they are, and how they are used, is `env/net/tls/`'s.

use crate::config::ConfigError;
use crate::env::{ClientAuth, Env, Tls, TlsFiles};
use std::time::{Duration, UNIX_EPOCH};

/// The node's certificates, and its world with TLS; as it is if the settings name no files. Waits for disks.
///
/// # Errors
/// The first file that is missing or of no use; that there is no TLS in this world.
pub(crate) fn secure(
    env: Env,
    files: &TlsFiles,
    client_auth: ClientAuth,
) -> Result<(Env, Option<Tls>), ConfigError> {
    if !files.is_on() {
        return Ok((env, None));
    }
    let tls = Tls::for_node(files, client_auth)?;
    let env = env.secured(&tls).ok_or(ConfigError::NoTlsHere)?;
    Ok((env, Some(tls)))
}

/// Reads the certificates again. If one of the files is of no use, the old ones stay.
pub(crate) async fn read_again(tls: &Tls) {
    match tls.read_again().await {
        Ok(()) => log::info!("certificates read again expires={}", date(tls.expires())),
        Err(why) => log::error!("certificates not read again, the old ones stay cause={why:?}"),
    }
}

/// Tells if they end soon.
pub(crate) fn warn_of_end(tls: &Tls) {
    if let Some(left) = tls.expires_within() {
        let days = left.as_secs() / (24 * 60 * 60);
        log::warn!("the certificate ends soon days={days} expires={}", date(tls.expires()));
    }
}

fn date(seconds: Option<u64>) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or_default()))
}
