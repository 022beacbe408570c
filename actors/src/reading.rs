//! How bytes are read from a socket into a buffer: as much as is known to be missing, with everybody else's turns in between.

use crate::env::Stream;
use bytes::BytesMut;
use std::io;

/// How much is read at once, in bytes.
pub(crate) const READ_BYTES: usize = 16 * 1024;

/// Reads more into `buffer`, of which `need` bytes are known to be missing; `Ok(false)` at the end of the stream.
///
/// The buffer's memory follows what has arrived, not what was announced. While little is in it, it is a new one each
/// time: the rest of a long request that was taken off its front would keep that request's memory. A long one ends where
/// what is missing ends: nothing short that comes after it can keep its memory.
pub(crate) async fn read_more(stream: &Stream, buffer: &mut BytesMut, need: usize) -> io::Result<bool> {
    read_some(stream, buffer, need, READ_BYTES).await.map(|read| read > 0)
}

/// The same for a link over which much that is short may come at once, up to `short_bytes` of it; how many bytes came.
pub(crate) async fn read_some(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    short_bytes: usize,
) -> io::Result<usize> {
    let length = buffer.len();
    // Memory that nothing was read into takes none; to copy a long request again and again would take long.
    let room = if length >= WHOLE_BYTES_MIN { need } else { need.min(length) }.max(short_bytes);
    if length <= READ_BYTES {
        let mut small = BytesMut::with_capacity(length + room);
        small.extend_from_slice(buffer);
        *buffer = small;
    } else {
        make_room(buffer, room).await;
    }
    let bytes_max = if need > READ_BYTES { need.min(LONG_READ_BYTES) } else { LONG_READ_BYTES };
    let read = stream.read_at_most(buffer, bytes_max).await?;
    if read >= LONG_READ_BYTES {
        tokio::task::yield_now().await;
    }
    Ok(read)
}

/// Makes room for `room` bytes more. What is there may have to move: as much of it at once as takes no time, with everybody
/// else's turns in between. A future that is dropped meanwhile has changed nothing.
async fn make_room(buffer: &mut BytesMut, room: usize) {
    if buffer.len() <= MOVED_AT_ONCE || buffer.capacity() - buffer.len() >= room {
        buffer.reserve(room);
        return;
    }
    // Twice as much at least, so that each byte is moved once, about.
    let mut larger = BytesMut::with_capacity((buffer.len() + room).max(2 * buffer.len()));
    for part in buffer.chunks(MOVED_AT_ONCE) {
        larger.extend_from_slice(part);
        tokio::task::yield_now().await;
    }
    *buffer = larger;
}

/// So many bytes are moved in one turn.
const MOVED_AT_ONCE: usize = 512 * 1024;

/// No more of a long request is read at once, and after that a connection lets others run, even if more is there: many
/// that bring long values at once would else hold up everybody, timers too.
const LONG_READ_BYTES: usize = 64 * 1024;

/// With so many bytes of a request there, room is made for all of it.
const WHOLE_BYTES_MIN: usize = 1 << 20;
