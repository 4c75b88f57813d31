//! Arguments that several subcommands share: which problems, which device, which database, which templates.

use super::CliError;
use super::files;
use super::precision::{PrecisionArgs, dtype_of, with_cache};
use clap::builder::RangedU64ValueParser;
use jitune::backend::{cpu, cuda};
use jitune::device::{Device, DeviceId, Target};
use jitune::journal;
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::Problem;
use jitune::template::Library;
use jitune_db::{Db, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which problems.
#[derive(clap::Args, Clone)]
pub struct Which {
    /// A preset (see `jitune model --help`), or a folder with the Hugging Face config.json of a Llama, Mistral, Qwen2 (or
    /// 2.5) or dense Qwen3.
    #[arg(long, value_name = "NAME|FOLDER")]
    pub model: Option<String>,
    /// A problem in its text form; may be given several times.
    #[arg(long, value_name = "TEXT", conflicts_with = "model")]
    pub problem: Vec<String>,
    /// A file with one problem a line, such as an edited output of `jitune model --problems`; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "problem"])]
    pub plan: Option<PathBuf>,
    #[command(flatten)]
    pub buckets: BucketArgs,
}

/// What is tuned and exported.
pub struct Whole {
    /// All of the problems.
    pub problems: Vec<Problem>,
    /// Those of them that are searched only among what was measured for others.
    pub narrow: Vec<Problem>,
}

/// The buckets of a model's plan.
#[derive(clap::Args, Clone)]
pub struct BucketArgs {
    /// Batch sizes of a decode step; 1,4,16,32,64,128,256 on a GPU and 1,4,16,32 on a CPU by default.
    #[arg(long, value_delimiter = ',')]
    pub batch: Vec<i64>,
    /// Prompt lengths; 512,1024,2048,4096,8192 on a GPU and 512,2048 on a CPU by default, as far as the model's window goes.
    #[arg(long, value_delimiter = ',')]
    pub prefill: Vec<i64>,
    /// Tokens of parts of prompts that are read over a cache with that many tokens in it; 64 on a GPU and none on a CPU by
    /// default.
    #[arg(long, value_delimiter = ',')]
    pub chunk: Vec<i64>,
    /// Tokens in the KV cache while decoding; 4096 by default.
    #[arg(long)]
    pub context: Option<i64>,
    /// Sizes between two buckets of a product, which are tuned among what was measured for the buckets; 3 on a GPU and 0 on a CPU
    /// by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=15))]
    pub between: Option<u32>,
    /// Tokens of a page of the KV cache.
    #[arg(long, default_value_t = 64)]
    pub page: i64,
    #[command(flatten)]
    pub precision: PrecisionArgs,
}

/// Which device.
#[derive(clap::Args, Clone)]
pub struct Where {
    /// cuda or cpu; by default a GPU when there is one, otherwise the CPU.
    #[arg(long, value_parser = target)]
    pub target: Option<Target>,
    /// `all`, or ordinals such as 0,2.
    #[arg(long, default_value = "0", value_name = "LIST", value_parser = gpus)]
    pub gpus: Gpus,
    /// Threads of the CPU target; all by default.
    #[arg(long, value_parser = at_least_one())]
    pub threads: Option<usize>,
}

/// GPUs as they are asked for.
#[derive(Clone, Debug)]
pub enum Gpus {
    /// Every GPU.
    All,
    /// These, each once.
    These(Vec<usize>),
}

fn gpus(text: &str) -> Result<Gpus, String> {
    if text == "all" {
        return Ok(Gpus::All);
    }
    let list = text.split(',').map(|t| t.trim().parse()).collect::<Result<Vec<usize>, _>>();
    let list = list.map_err(|_| "it is `all`, or ordinals such as 0,2".to_string())?;
    match list.iter().enumerate().find(|(i, gpu)| list[..*i].contains(gpu)) {
        Some((_, twice)) => Err(format!("{twice} stands twice in it")),
        None => Ok(Gpus::These(list)),
    }
}

/// A number between two others, bounds included; neither NaN nor infinite.
pub fn within(least: f64, most: f64) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("it must lie in {least}..={most}")),
    }
}

/// A count, of which zero would mean nothing.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A number of bytes, with K, M, G or T for powers of 1024.
#[cfg_attr(not(feature = "serve"), allow(dead_code))]
pub fn bytes(text: &str) -> Result<u64, String> {
    let bad = || "it is a number of bytes, such as 4294967296, 4G or 512M".to_string();
    let plain = text.trim_end_matches("iB").trim_end_matches('B');
    let (digits, power) = match plain.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let power = "KMGT".find(unit.to_ascii_uppercase()).ok_or_else(bad)?;
            (&plain[..at], power as u32 + 1)
        }
        _ => (plain, 0),
    };
    let count = digits.parse::<f64>().ok().filter(|n| *n > 0.0).ok_or_else(bad)?;
    let bytes = count * 1024f64.powi(power as i32);
    if bytes < 1e18 { Ok(bytes as u64) } else { Err(bad()) }
}

fn target(text: &str) -> Result<Target, String> {
    match text {
        "cuda" => Ok(Target::Cuda),
        "cpu" => Ok(Target::Cpu),
        _ => Err("it is cuda or cpu".into()),
    }
}

/// Which database.
#[derive(clap::Args, Clone)]
pub struct Store {
    /// The database's folder; by default $JITUNE_DB, or jitune under $XDG_DATA_HOME (~/.local/share).
    #[arg(long, value_name = "FOLDER", global = true)]
    pub db: Option<PathBuf>,
    /// How long to wait for another process that holds the database.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", global = true)]
    pub db_wait: u64,
}

/// Which templates beside the built-in ones.
#[derive(clap::Args, Clone)]
pub struct Templates {
    /// A folder of templates of your own (see docs/templates.md); may be given several times.
    #[arg(long, value_name = "FOLDER")]
    pub templates: Vec<PathBuf>,
}

impl Which {
    /// What is tuned and exported, for a device of this target: the problems, and where they are a model's, those of the
    /// portable winners that answer what no bucket does, and those that fill the gaps between the buckets.
    pub fn whole(&self, target: Target) -> Result<Whole, CliError> {
        let Some(name) = self.model.as_ref().filter(|_| self.problem.is_empty() && self.plan.is_none()) else {
            return Ok(Whole { problems: self.problems(target)?, narrow: Vec::new() });
        };
        let (_, plan, notes) = self.buckets.plan(name, target)?;
        say(&notes);
        let between = self.buckets.between.unwrap_or(if target == Target::Cuda { 3 } else { 0 });
        let narrow = plan.between(between);
        let mut problems = plan.problems();
        problems.extend(plan.portable().into_iter().filter(|p| !problems.contains(p)).collect::<Vec<_>>());
        problems.extend(plan.draws());
        if target == Target::Cuda {
            problems.extend(plan.fusions());
        }
        if between > 0 {
            problems.extend(plan.contexts().into_iter().filter(|p| !problems.contains(p)).collect::<Vec<_>>());
        }
        problems.extend(&narrow);
        Ok(Whole { problems, narrow })
    }

    /// The problems, for a device of this target.
    pub fn problems(&self, target: Target) -> Result<Vec<Problem>, CliError> {
        if let Some(path) = &self.plan {
            let read = match path.as_os_str().to_str() {
                Some("-") => files::text_of(std::io::stdin(), path, files::MAX_TEXT_BYTES),
                _ => files::text(path, files::MAX_TEXT_BYTES),
            };
            let text = read?;
            let list = Plan::problems_of_text(&text).map_err(|(line, source)| CliError::PlanLine {
                path: path.clone(),
                line,
                source,
            })?;
            if list.is_empty() {
                return Err(CliError::Usage(format!("{}: no problem in it", path.display())));
            }
            return Ok(list);
        }
        if !self.problem.is_empty() {
            return self.problem.iter().map(|t| t.parse().map_err(CliError::from)).collect();
        }
        match &self.model {
            Some(name) => {
                let (_, plan, notes) = self.buckets.plan(name, target)?;
                say(&notes);
                Ok(plan.problems())
            }
            None => Err(CliError::Usage("say which problems: --model NAME, --problem TEXT or --plan FILE".into())),
        }
    }
}

/// Says notes on standard error.
pub fn say(notes: &[String]) {
    notes.iter().for_each(|note| err!("jitune: note: {note}"));
}

impl BucketArgs {
    /// The model of that name, its plan, and what is to be said of them.
    pub fn plan(&self, name: &str, target: Target) -> Result<(Model, Plan, Vec<String>), CliError> {
        let (model, mut notes) = Model::load(name)?;
        let buckets = self.buckets(&model, target);
        let asked = &self.precision;
        let (precision, more) = asked.weights.of_named(name, &model, dtype_of(asked.dtype, target)?, target)?;
        notes.extend(more);
        let plan = Plan::new(&model, &buckets, with_cache(precision, asked.kv_dtype, target)?)?;
        let (longest, most) = (buckets.longest(), model.max_position_embeddings);
        if longest > most {
            notes.push(format!(
                "{longest} tokens are more than the {most} that {name} was made for (max_position_embeddings)"
            ));
        }
        Ok((model, plan, notes))
    }

    /// The buckets, those of the target where none are named.
    fn buckets(&self, model: &Model, target: Target) -> Buckets {
        let usual = Buckets::of(target);
        let or = |given: &[i64], usual: Vec<i64>| if given.is_empty() { usual } else { given.to_vec() };
        let seen = |tokens: &i64| model.sliding_window.is_none_or(|window| *tokens <= window);
        let prefill = usual.prefill.into_iter().filter(seen).collect();
        let chunk = usual.chunk.into_iter().filter(seen).collect();
        Buckets {
            batch: or(&self.batch, usual.batch),
            prefill: or(&self.prefill, prefill),
            chunk: or(&self.chunk, chunk),
            context: self.context.unwrap_or(4096),
            page: self.page,
        }
    }
}

impl Where {
    /// The target: the asked one, or a GPU when there is one.
    pub fn target(&self) -> Result<Target, CliError> {
        match self.target {
            Some(t) => Ok(t),
            None => Ok(if cuda::gpu_count().is_ok_and(|n| n > 0) { Target::Cuda } else { Target::Cpu }),
        }
    }

    /// The devices as workers see them.
    pub fn devices(&self) -> Result<Vec<DeviceId>, CliError> {
        if self.target()? == Target::Cpu {
            return Ok(vec![DeviceId::Cpu(self.threads.unwrap_or(0))]);
        }
        let count = cuda::gpu_count()?;
        let list = match &self.gpus {
            Gpus::All => (0..count).collect(),
            Gpus::These(list) => list.clone(),
        };
        match list.iter().find(|i| **i >= count) {
            Some(&ordinal) => Err(jitune::backend::BackendError::NoGpu { ordinal, count }.into()),
            None if list.is_empty() => Err(jitune::backend::BackendError::NoGpu { ordinal: 0, count }.into()),
            None => Ok(list.into_iter().map(DeviceId::Cuda).collect()),
        }
    }

    /// The first device.
    pub fn first(&self) -> Result<DeviceId, CliError> {
        self.devices()?.first().copied().ok_or_else(|| CliError::Usage("--gpus: it names no GPU".into()))
    }

    /// The first device's description. Only for subcommands that measure nothing: it opens the GPU in this process.
    pub fn describe(&self) -> Result<Device, CliError> {
        match self.first()? {
            DeviceId::Cuda(ordinal) => Ok(cuda::describe(ordinal)?),
            DeviceId::Cpu(_) => Ok(cpu::describe(self.threads)),
        }
    }
}

impl Store {
    /// The folder.
    pub fn path(&self) -> Result<PathBuf, CliError> {
        match &self.db {
            Some(path) => Ok(path.clone()),
            None => Ok(jitune_db::default_dir()?),
        }
    }

    /// Refuses an output that would lie in this database, or in another.
    pub fn keeps_out(&self, output: &Path) -> Result<(), CliError> {
        // Where nobody says where it is, there is none.
        files::outside(output, self.path().ok().as_deref())
    }

    /// Opens the database to write.
    pub fn open(&self) -> Result<Db, CliError> {
        self.opened(true)
    }

    /// The same of one that is there.
    pub fn existing(&self) -> Result<Db, CliError> {
        self.opened(false)
    }

    fn opened(&self, create: bool) -> Result<Db, CliError> {
        let options = OpenOptions { wait: Duration::from_secs(self.db_wait), create, ..journal::options() };
        Ok(Db::open(&self.path()?, options)?)
    }

    /// Opens it to read; works beside a running tuner.
    pub fn read(&self) -> Result<Db, CliError> {
        Ok(Db::open(&self.path()?, OpenOptions { read_only: true, ..journal::options() })?)
    }
}

impl Templates {
    /// The built-in templates and those of the given folders.
    pub fn library(&self) -> Result<Library, CliError> {
        let mut library = Library::built_in()?;
        for folder in &self.templates {
            library.add_folder(folder)?;
        }
        say(library.notes());
        Ok(library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, wanted) in
            [("4096", 4096), ("4K", 4096), ("1.5G", 3 << 29), ("512MiB", 512 << 20), ("2g", 2 << 30), ("1TB", 1 << 40)]
        {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for text in ["", "G", "-1", "0", "4X", "nan", "inf", "1e30", "4 GG"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
