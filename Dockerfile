# The images of refork. `--target server` serves an application, `--target operator` is for a cluster.
# docs/IMAGE.md tells what they promise, how to build them behind a mirror, and how to use them.

# Both need the same Python at the same path; only the first needs a compiler and a shell.
ARG BUILD_IMAGE=docker.io/library/python:3.13
ARG BASE_IMAGE=docker.io/library/python:3.13-slim

# --- the wheel ----------------------------------------------------------------------------------------------------

FROM ${BUILD_IMAGE} AS wheel
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY . .
# To pip a native module that does not compile is no error. In an image it is one: hence the import.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip wheel --no-deps --wheel-dir /wheels . \
    && python3 -m pip install --no-deps --no-compile --no-index /wheels/*.whl \
    && python3 -c 'import refork._fork, refork._heap'

# --- what each image adds to its base, in a tree of its own ---------------------------------------------------------

# Installed below /files where the interpreter of the base looks for it. The bytecode is compiled here, because a
# read-only container cannot keep what it compiles, and unchecked: whoever rewrites the times of files in a layer, as
# reproducible builds do, would invalidate it otherwise.
FROM wheel AS server-files
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip install --root /files --ignore-installed --no-compile --no-warn-script-location \
    "$(echo /wheels/*.whl)[uvicorn,kubernetes]" \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /files -p / /files

# Of the Kubernetes client the operator loads the transport, and next to none of its thousand generated modules.
FROM wheel AS operator-files
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip install --root /files --ignore-installed --no-compile --no-warn-script-location \
    "$(echo /wheels/*.whl)[operator]" \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /files -p / \
    -x '/client/(api|models)/[^_]' /files

# --- the images: nothing is run in them while they are built, so a base without a shell will do -----------------------

FROM ${BASE_IMAGE} AS common
ARG BASE_IMAGE
ARG REVISION
ARG VERSION=0.1.0
LABEL org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.documentation="https://refork.dev/IMAGE/" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/refork/refork" \
      org.opencontainers.image.url="https://refork.dev" \
      org.opencontainers.image.vendor="refork" \
      org.opencontainers.image.version="${VERSION}"
# The user has no entry in /etc/passwd, and so no home. What libraries keep at home goes to the one writable place.
ENV HOME=/tmp PYTHONUNBUFFERED=1

FROM common AS operator
LABEL org.opencontainers.image.title="refork-operator" \
      org.opencontainers.image.description="Reforks the pods of a cluster when it pays, or when asked"
COPY --from=operator-files /files/ /
EXPOSE 8080
USER 65532:65532
ENTRYPOINT ["refork-operator"]

FROM common AS server
LABEL org.opencontainers.image.title="refork" \
      org.opencontainers.image.description="Serves a WSGI or ASGI application with workers forked from a warm, sealed mold"
COPY --from=server-files /files/ /
# The weakest of the ways to say where to listen: settings, arguments and GUNICORN_CMD_ARGS win over it.
ENV PORT=8000
WORKDIR /app
EXPOSE 8000
USER 65532:65532
ENTRYPOINT ["refork"]
