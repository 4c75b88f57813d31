//! How large may be what comes from elsewhere: bundles, journals, users' templates. Each number is far above what jitune makes
//! itself, and low enough that reading takes less than two seconds and half a gigabyte, whatever is written there.

/// Largest bundle: a file is read whole, and offsets are far from the end of a u64.
pub const MAX_BUNDLE_BYTES: u64 = 4 << 30;
/// Largest manifest of a bundle: some thousand winners, at 4 KB each.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Most that a manifest's parts may weigh together (`bundle::manifest::weight`): a part takes up to a hundred bytes of memory
/// for each byte of its text, a unit of weight about as many at most. Winners of the tuner weigh a thousand at most.
pub const MAX_MANIFEST_WEIGHT: u64 = 2 << 20;
/// Largest single artifact: kernels have some tens of kilobytes.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;
/// Most bytes of a signature's file that are read: its comments have some hundred.
pub const MAX_SIGNATURE_BYTES: u64 = 64 << 10;
/// Most artifacts of a bundle.
pub const MAX_ARTIFACTS: u32 = 1 << 16;
/// Most winners of a bundle: the launch of each is evaluated when it is loaded.
pub const MAX_WINNERS: u32 = 1 << 16;
/// Most descriptions of a bundle: a template has one, or some where it was edited between tunings. There are 60 built in.
pub const MAX_DESCRIPTIONS: usize = 1 << 10;
/// Most devices of a bundle; each winner of a problem is compared with those of its other devices.
pub const MAX_DEVICES: usize = 1 << 8;
/// Most bytes of expressions that the descriptions of a bundle, or the templates of a folder, have together: a tree takes up
/// to 64 bytes for each byte of its text. Templates have some 3 KB.
pub const MAX_EXPRESSIONS_BYTES: usize = 4 << 20;

/// Most bytes of an expression. The longest that is built in has 456.
pub const MAX_EXPRESSION_BYTES: usize = 2000;
/// How deep an expression may nest: brackets, `not`, signs, and what follows `else`. Parser and evaluation recurse as deep.
pub const MAX_NESTING: usize = 32;
/// Most launches of a description; they run one after another.
pub const MAX_LAUNCHES: usize = 16;
/// Most arguments that a launch may list, those that `when` leaves out included: CUDA takes 4 KB of them.
pub const MAX_ARGS: usize = 64;
/// Most entries of each of a description's other lists: ops, tunables, derived names, constraints, defines, flags.
pub const MAX_ENTRIES: usize = 256;
/// Most values of a tunable.
pub const MAX_VALUES: usize = 256;
/// Most bytes of a name: of a template, an entry, a tunable, a constraint, a tensor.
pub const MAX_NAME_BYTES: usize = 256;
/// Most steps in which a space is enumerated, each the evaluation of one expression: a second or so. Every template that is
/// built in needs less than 40 thousand on any problem of any preset.
#[cfg(feature = "tuner")]
pub const MAX_ENUMERATION: u64 = 4_000_000;

/// Most tasks of all launches of a kernel for a processor: tasks that do nothing take a second then.
pub const MAX_TASKS: u64 = 1 << 26;
/// Most blocks of all launches of a kernel for a GPU: blocks that do nothing take a second then. A GPU itself takes 2^63.
pub const MAX_BLOCKS: u64 = 1 << 30;
/// Scratch memory that any kernel may have.
pub const MIN_WORKSPACE: u64 = 256 << 20;
/// Scratch memory that a kernel may have beyond that, as a multiple of its tensors' bytes: partial sums of a product have an
/// f32 for each output and split.
pub const MAX_WORKSPACE_SHARE: u64 = 64;

/// Largest description of a template in a file. Those built in have 7 KB at most.
#[cfg(feature = "tuner")]
pub const MAX_DESCRIPTION_BYTES: u64 = 256 << 10;
/// Largest source or header of a template.
#[cfg(feature = "tuner")]
pub const MAX_SOURCE_BYTES: u64 = 4 << 20;
/// Most files of a folder of templates that are read.
#[cfg(feature = "tuner")]
pub const MAX_TEMPLATE_FILES: usize = 1 << 12;
/// Most bytes that they have together.
#[cfg(feature = "tuner")]
pub const MAX_FOLDER_BYTES: u64 = 64 << 20;

/// Largest file of text of a model's folder: a tokenizer has some tens of megabytes.
#[cfg(any(feature = "tuner", feature = "engine"))]
pub const MAX_MODEL_TEXT_BYTES: u64 = 256 << 20;

/// Largest trace of requests.
#[cfg(feature = "engines")]
pub const MAX_TRACE_BYTES: u64 = 64 << 20;
/// Most requests of a trace.
#[cfg(feature = "engines")]
pub const MAX_TRACE_LINES: usize = 1 << 18;
