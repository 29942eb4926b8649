# The command `llm`: its list of models has the server's, and a question is one line. sh examples/clients/llm.sh
set -eu
BASE_URL=${BASE_URL:-http://127.0.0.1:8000/v1}
export LLM_USER_PATH="${LLM_USER_PATH:-$(mktemp -d)}"  # leave this line out, to keep the models in your own settings
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<END
- model_id: demo
  model_name: demo
  api_base: $BASE_URL
- model_id: demo-half
  model_name: demo@0.5
  api_base: $BASE_URL
END
llm models list | grep demo
llm --model demo-half --option temperature 0 --option max_tokens 40 --no-log 'How do mountains form?'
