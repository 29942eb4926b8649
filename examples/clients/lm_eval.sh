# A task of lm-evaluation-harness from a local file, over HTTP. sh examples/clients/lm_eval.sh
set -eu
work=$(mktemp -d)
cat > "$work/questions.jsonl" <<END
{"question": "Water is", "choices": ["a liquid", "a mountain"], "answer": 0}
{"question": "The sun is", "choices": ["a river", "a star"], "answer": 1}
{"question": "Mountains form when plates", "choices": ["push together", "sing together"], "answer": 0}
END
cat > "$work/questions.yaml" <<END
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: $work/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
END
HF_HUB_OFFLINE=1 python -m lm_eval run --model local-completions --tasks questions --include_path "$work" \
  --model_args "model=demo,base_url=${BASE_URL:-http://127.0.0.1:8000/v1}/completions,tokenizer_backend=remote,num_concurrent=2"
rm -r "$work"
