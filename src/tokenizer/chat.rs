//! A model's chat template: Jinja as transformers renders it.

use super::TokenizerError;
use crate::file;
use crate::limits::MAX_MODEL_TEXT_BYTES;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Instructions of a template that are carried out, at most: what goes on for ever ends.
const FUEL: u64 = 10_000_000;

/// A message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: system, user or assistant.
    pub role: String,
    /// What.
    pub content: String,
}

pub(super) struct Template {
    text: String,
    begin: String,
    end: String,
}

/// The template of a folder: of `chat_template.jinja`, or of `tokenizer_config.json`, the one named default where there are
/// several.
pub(super) fn of_folder(folder: &Path) -> Result<Option<Template>, TokenizerError> {
    let file = folder.join("tokenizer_config.json");
    let config: Value = match file::text(&file, MAX_MODEL_TEXT_BYTES) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|e| TokenizerError::File { path: file.clone(), why: e.to_string() })?
        }
        Err(_) => Value::Null,
    };
    let special = |key: &str| {
        let token = &config[key];
        token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default().to_string()
    };
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|t| t["name"] == "default");
        default.and_then(|t| t["template"].as_str()).map(String::from)
    };
    let template = &config["chat_template"];
    let text = file::text(&folder.join("chat_template.jinja"), MAX_MODEL_TEXT_BYTES).ok();
    let text = text.or_else(|| template.as_str().map(String::from)).or_else(|| template.as_array().and_then(named));
    Ok(text.map(|text| Template::new(&text, [special("bos_token"), special("eos_token")])))
}

impl Template {
    /// A template, and the texts of the tokens that begin and end a text.
    pub fn new(text: &str, [begin, end]: [String; 2]) -> Template {
        Template { text: text.into(), begin, end }
    }

    pub fn render(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        let failed = |e: minijinja::Error| TokenizerError::Template(format!("{e:#}"));
        let mut jinja = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        jinja.set_syntax(syntax);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_function("raise_exception", |why: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
        });
        jinja.add_template("chat", &self.text).map_err(failed)?;
        let values = context! {
            messages => Serde(messages), add_generation_prompt => true, bos_token => &self.begin, eos_token => &self.end,
        };
        jinja.get_template("chat").and_then(|t| t.render(values)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(template: &str, messages: &[(&str, &str)]) -> Result<String, String> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect();
        let template = Template::new(template, ["<s>".into(), "</s>".into()]);
        template.render(&messages).map_err(|e| e.to_string())
    }

    #[test]
    fn templates_are_rendered_as_transformers_does() {
        // Blocks leave no line behind, methods are Python's, and loops may be left.
        let template = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'tool' %}\n{% continue %}\n    \
                        {% endif %}\n<|{{ m.role.upper() }}|>{{ m['content'].strip() }}{{ eos_token }}\n{% endfor %}\n\
                        {% if add_generation_prompt %}\n<|ASSISTANT|>{% endif %}";
        let text = said(template, &[("user", "  hello "), ("tool", "x"), ("user", "again")]).unwrap();
        assert_eq!(text, "<s><|USER|>hello</s>\n<|USER|>again</s>\n<|ASSISTANT|>");
        assert_eq!(said("{{ messages | tojson }}", &[("user", "a")]).unwrap(), r#"[{"role": "user", "content": "a"}]"#);
    }

    #[test]
    fn what_a_template_refuses_is_said() {
        let why = said("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(why.contains("roles must alternate"), "{why}");
        assert!(said("{% for i in range(100000000) %}x{% endfor %}", &[]).is_err());
        assert!(said("{% if %}", &[]).is_err());
    }
}
