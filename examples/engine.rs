//! A model in a program of one's own: many requests at a time, from the files of a model and a bundle of kernels alone.
//!
//! ```text
//! engine MODEL BUNDLE PROMPT…
//! ```
//! MODEL is a folder as Hugging Face has it, or a GGUF file; `jitune tune --model MODEL` finds kernels and `jitune export -o BUNDLE` seals
//! them. Each prompt is a request of its own, and all are answered at once; a prompt of numbers with commas is taken as token ids.

use jitune::bundle::Bundle;
use jitune::engine::{Engine, Event, Options, Request, Sampling};
use jitune::model::Model;
use jitune::problem::Dtype;
use jitune::runtime::Runtime;
use jitune::tokenizer::Tokenizer;
use jitune::weights::Weights;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, bundle, prompts @ ..] = &args[..] else { return Err("usage: engine MODEL BUNDLE PROMPT…".into()) };
    let (model, notes) = Model::load(name)?;
    notes.iter().for_each(|note| eprintln!("{note}"));
    let (weights, _) = Weights::open(Path::new(name), &model)?;
    let tokenizer = Tokenizer::open(Path::new(name)).ok();
    // Or `Runtime::cuda(&bundle, 0)`, and bf16.
    let runtime = Runtime::cpu(&Bundle::open(bundle)?, None)?;
    let mut options = Options::new(Dtype::F32, model.max_position_embeddings.min(1024));
    options.sequences = 8;
    let engine = Engine::open(runtime, &model, &weights, options, |_, _| ())?;
    eprintln!("{}", engine.plan());

    let ends = Model::ends(Path::new(name))?;
    let mut answers = Vec::new();
    for text in prompts {
        let ids = text.split(',').map(|id| id.trim().parse()).collect::<Result<Vec<i32>, _>>();
        let prompt = match (ids, &tokenizer) {
            (Ok(ids), _) => ids,
            (Err(_), Some(tokenizer)) => tokenizer.encode(text, true)?,
            (Err(_), None) => return Err("the model has no tokenizer: give ids, as 1,5,7".into()),
        };
        let sampling = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
        answers.push(engine.submit(Request { prompt, most: 32, ends: ends.clone(), sampling, logits: false })?);
    }
    for (text, answer) in prompts.iter().zip(answers) {
        let mut ids = Vec::new();
        for event in answer {
            match event {
                Event::Token(token) => ids.push(token.id),
                Event::End(end) => eprintln!("{text}: {} tokens, {:?}", end.answer, end.why),
                _ => (),
            }
        }
        match &tokenizer {
            Some(tokenizer) => println!("{text}{}", tokenizer.decode(&ids)?),
            None => println!("{ids:?}"),
        }
    }
    println!("{:?}", engine.stats());
    Ok(())
}
