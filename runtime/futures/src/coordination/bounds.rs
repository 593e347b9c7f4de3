//! Bounds of everything that clients can make the coordination keep. A question that would go beyond one is refused
//! with OX346; nothing that is kept already is dropped for it, but the oldest events of topics.

/// Bytes of one name: of a semaphore, a queue, a topic, a key.
pub const NAME_BYTES_MAX: usize = 4 * 1024;
/// Names of each kind: semaphores, events, queues, variables, locks of multi-locks, published data, topics.
pub const NAMES_MAX: usize = 100_000;
/// Questions that wait, over all clients.
pub const WAITS_MAX: usize = 100_000;
/// Leases, over all semaphores.
pub const LEASES_MAX: usize = 1_000_000;
/// Leases or keys or names in one question.
pub const LIST_MAX: usize = 100_000;
/// Items, over all queues.
pub const QUEUE_ITEMS_MAX: usize = 1_000_000;
/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of all values and names in queues, variables, published data and metadata.
pub const HELD_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bytes of the values of one answer; the asker asks again for the rest. A message holds an answer with room to spare
/// if it may have 64 MiB.
pub const ANSWER_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Keys that published data, queue items and variables name, each as often as it is named.
pub const WANTS_MAX: usize = 10_000_000;
/// Values and levels of metadata, each with its key.
pub const METADATA_NODES_MAX: usize = 100_000;
/// Bytes of metadata: they have to fit in one answer.
pub const METADATA_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Keys on the way to a value of metadata.
pub const METADATA_DEPTH_MAX: usize = 32;
/// Events kept of one topic; older ones go.
pub const TOPIC_EVENTS_MAX: usize = 10_000;
/// Events kept of all topics; the oldest goes first.
pub const EVENTS_MAX: usize = 100_000;
/// Bytes of all events that are kept, and so of the answer with all of them.
pub const EVENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Topics named by one event.
pub const EVENT_TOPICS_MAX: usize = 100;
/// Clients that listen, counted once for each topic.
pub const SUBSCRIPTIONS_MAX: usize = 100_000;

/// The longest wait of one question. An asker with more time is told to ask again.
pub const WAIT_MICROS_MAX: u64 = 600_000_000;
/// How long a key that was handed to a client stays wanted if that client does not say that it wants the key itself.
pub const HANDOVER_MICROS_MAX: u64 = 60_000_000;
/// How long a key stays wanted after its last use here: what clients want arrives on another stream than questions.
pub const LINGER_MICROS: u64 = 5_000_000;
/// Bytes of all published names: they have to fit in one answer.
pub const PUBLISHED_NAME_BYTES_MAX: usize = 16 * 1024 * 1024;
