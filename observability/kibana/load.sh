#!/bin/sh
# Load the ingest pipeline, the index template and the Kibana objects; again after each change of theirs.
#
#   ELASTICSEARCH_URL=http://127.0.0.1:9200 KIBANA_URL=http://127.0.0.1:5601 ./load.sh
#
# With security on, ELASTIC_API_KEY is an API key in its encoded form.
set -eu
elasticsearch=${ELASTICSEARCH_URL:-http://127.0.0.1:9200}
kibana=${KIBANA_URL:-http://127.0.0.1:5601}
cd "$(dirname "$0")"

request() {
    # The key goes in through stdin: an argument could be read by everybody on the machine.
    printf '%s' "${ELASTIC_API_KEY:+Authorization: ApiKey $ELASTIC_API_KEY}" |
        curl --silent --show-error --fail-with-body --header @- "$@"
    echo
}

json='Content-Type: application/json'
# The pipeline comes first: the template names it.
request --request PUT --header "$json" --data-binary @ingest-pipeline.json "$elasticsearch/_ingest/pipeline/taskpilot-logs"
request --request PUT --header "$json" --data-binary @index-template.json "$elasticsearch/_index_template/taskpilot-logs"
request --header 'kbn-xsrf: true' --form file=@saved-objects.ndjson "$kibana/api/saved_objects/_import?overwrite=true"
