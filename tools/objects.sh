# Object stores for tests, which are none of ours: moto, which speaks S3, and Azurite, Azure's own emulator. Sourced after lib.sh and rust.sh's like.
# shellcheck shell=bash

# Released versions, of which none takes another's place unnoticed.
MOTO=5.2.5 FLASK=3.1.3 FLASK_CORS=6.0.5
AZURITE=3.35.0

# object_server LOG: starts it, and exports PPB_S3, its URL, and PPB_BOTO3, where Python finds boto3. Once installed in the cache
# it needs no network. Where it cannot be had that is an error, unless PPB_NO_OBJECTS says that those tests may be left out.
object_server() {
	local log=$1 place port
	if [ -n "${PPB_NO_OBJECTS:-}" ]; then
		note 'PPB_NO_OBJECTS: NOTHING IS TESTED on an object store'
		return
	fi
	place=$(cache_dir)/moto-$MOTO
	if [ ! -f "$place/.complete" ]; then
		rm -rf "$place"
		step "Installing an object store for tests (moto $MOTO)" install_moto "$place"
	fi
	port=$(free_port "$place/bin/python")
	env -u http_proxy -u https_proxy PYTHONUNBUFFERED=1 "$place/bin/moto_server" -H 127.0.0.1 -p "$port" >"$log" 2>&1 &
	OBJECT_SERVER=$!
	for _ in $(seq 300); do
		if curl -s -o /dev/null --noproxy '*' "http://127.0.0.1:$port/"; then
			export PPB_S3=http://127.0.0.1:$port
			# moto has it for its own use; whoever runs the tests may not be able to read the cache.
			export PPB_BOTO3=$SCRATCH/boto3
			mkdir -p "$PPB_BOTO3"
			(cd "$place"/lib/python3*/site-packages &&
				cp -r boto3 botocore s3transfer jmespath dateutil urllib3 six.py "$PPB_BOTO3/")
			chmod -R a+rX "$PPB_BOTO3"
			return
		fi
		sleep 0.1
	done
	die 'the object store for tests does not answer' "its log: $log"
}

# azure_server LOG: starts Azurite, and exports PPB_AZURE, its URL.
azure_server() {
	local log=$1 place port
	place=$(cache_dir)/azurite-$AZURITE
	if [ ! -f "$place/.complete" ]; then
		if ! command -v npm >/dev/null; then die 'there is no npm, which installs Azurite' 'on Debian: apt-get install npm'; fi
		rm -rf "$place"
		step "Installing Azure's emulator for tests (Azurite $AZURITE)" install_azurite "$place"
	fi
	port=$(free_port python3)
	mkdir "$SCRATCH/azurite"
	env -u http_proxy -u https_proxy "$place/node_modules/.bin/azurite-blob" --location "$SCRATCH/azurite" --blobPort "$port" \
		--skipApiVersionCheck --disableTelemetry --silent >"$log" 2>&1 &
	OBJECT_SERVER=$!
	for _ in $(seq 300); do
		if curl -s -o /dev/null --noproxy '*' "http://127.0.0.1:$port/"; then
			export PPB_AZURE=http://127.0.0.1:$port
			return
		fi
		sleep 0.1
	done
	die "Azure's emulator for tests does not answer" "its log: $log"
}

# free_port PYTHON: one that nobody listens on.
free_port() {
	"$1" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# By npm, from wherever that is configured to look.
install_azurite() {
	npm install --prefix "$1" --no-audit --no-fund --silent "azurite@$AZURITE" && touch "$1/.complete"
}

# In a virtual environment: by pip, from wherever that is configured to look.
install_moto() {
	local python
	for python in ${PPB_PYTHON:-} python3 /usr/bin/python3; do
		if "$python" -c 'import ensurepip, venv' 2>/dev/null; then break; fi
	done
	"$python" -m venv "$1" &&
		"$1/bin/pip" install --quiet --disable-pip-version-check "moto[s3]==$MOTO" "flask==$FLASK" "flask-cors==$FLASK_CORS" &&
		touch "$1/.complete"
}

end_object_server() {
	if [ -n "${OBJECT_SERVER:-}" ]; then kill "$OBJECT_SERVER" 2>/dev/null || true; fi
}
