//! The cache of compiled kernels with a real compiler: found again, made anew when it is damaged, and done without where
//! it cannot be written.

use secateur::cuda::{Cache, Nvrtc, Target};
use secateur::launch::kernels::MODULES;

#[test]
fn a_damaged_entry_is_compiled_again_and_a_folder_that_is_none_only_costs_time() {
    let nvrtc = Nvrtc::get().unwrap_or_else(|error| panic!("{error}"));
    let module = MODULES.iter().find(|module| module.file == "convert.cu").expect("a small source");
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |cache: &Cache| cache.compile(nvrtc, module, Target::Cubin(90)).expect("compiles");
    let cache = Cache::at(folder.path().join("kernels"));
    let (made, found) = compile(&cache);
    assert!(!found && !made.is_empty());
    assert_eq!(compile(&cache), (made.clone(), true));
    let files: Vec<_> = std::fs::read_dir(cache.folder().expect("one")).expect("lists").collect();
    let [Ok(file)] = &files[..] else { panic!("one file, not {files:?}") };
    for damage in [&made[..40], b"", &[0; 100]] {
        std::fs::write(file.path(), damage).expect("damages");
        assert_eq!(compile(&cache), (made.clone(), false));
        assert_eq!(compile(&cache), (made.clone(), true));
    }
    // Nobody may make a folder in a file, whatever their rights.
    let blocked = Cache::at(file.path().join("kernels"));
    assert!(blocked.check().is_err());
    for _ in 0..2 {
        assert_eq!(compile(&blocked), (made.clone(), false));
    }
}
