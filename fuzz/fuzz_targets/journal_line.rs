//! A line of a journal: as it is, and as the record of a line whose checksum fits.
#![no_main]

use jitune::journal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let reader = journal::options().reader;
    if let Some(record) = jitune_db::fuzz_line(data, &reader) {
        drop((journal::winner(&record), journal::verdict(&record), record.canonical(), record.key.id()));
    }
});
