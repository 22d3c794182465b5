"""A client list that lives in 512 MB.

    lowmem-wsgi run app:app

It serves with Gunicorn and wraps the app in LowMemory. Under any other server, one line at the end
of this file does the same: `app = LowMemory(app)`, or, where `app` must stay a Flask object,
`app.wsgi_app = LowMemory(app.wsgi_app)`.
"""

import csv
import io
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from flask import (
    Flask,
    Response,
    abort,
    flash,
    jsonify,
    redirect,
    render_template,
    request,
    send_file,
    send_from_directory,
    session,
    url_for,
)
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, InternalServerError, ServiceUnavailable
from werkzeug.wrappers import Response as WerkzeugResponse

import access
import chart
import db
import excel_jobs
import jobs
import spreadsheets
import storage
from forms import COLUMNS, Client, clean_client
from importing import ImportRefused, Problem, import_clients
from limits import duration, level, limits, size, wrapped

# What a view may return: a page, a page with its status, or a response.
Page = str | tuple[str, int] | WerkzeugResponse

LOGIN_NEEDED = {
    *("clients", "client", "new_client", "edit_client", "export_clients", "export_excel"),
    *("import_page", "import_excel", "import_job", "import_progress", "files", "download_file"),
}
# No script runs here and nothing comes from elsewhere: browsers hold us to it.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
OWN_SCRIPT = POLICY + "; script-src 'self'; connect-src 'self'"
UNPROCESSABLE = 422  # the status of a form that is shown again with what is wrong in it
INSTALL = "pip install -r requirements-excel.txt"
JOINTS = re.compile(r"[@._+]?[^@._+-]{0,24}-?")
EXPORT_ROWS = 100  # rows of an export in memory at a time, some 8 KB

folder = os.environ.get("CLIENTS_DIR")
app = Flask(__name__, instance_path=os.path.abspath(folder) if folder else None)
os.makedirs(app.instance_path, mode=0o700, exist_ok=True)

app.config.update(
    CLIENTS_DB=os.environ.get("CLIENTS_DB") or os.path.join(app.instance_path, "clients.sqlite3"),
    UPLOADS=os.path.join(app.instance_path, "uploads"),
    JOBS=os.path.join(app.instance_path, "jobs"),
    SECRET_KEY=os.environ.get("SECRET_KEY") or storage.secret_key(app.instance_path),
    SESSION_COOKIE_SAMESITE="Lax",
)
app.config.from_prefixed_env()  # on HTTPS: FLASK_SESSION_COOKIE_SECURE=true
os.makedirs(app.config["UPLOADS"], mode=0o700, exist_ok=True)

app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
app.jinja_env.filters.update(size=size, duration=duration)
app.jinja_env.globals.update(
    csrf_token=access.csrf_token,
    level=level,
    limits=limits,
    logged_in=access.logged_in,
    wrapped=wrapped,
    progress=excel_jobs.progress,
    INSTALL=INSTALL,
)


def pool() -> db.Pool:
    return db.pool(app.config["CLIENTS_DB"], limits()["pool_size"])


def connection() -> AbstractContextManager[sqlite3.Connection]:
    """A connection of the pool, for as short a time as can be: others wait for it."""
    return pool().connection()


@app.before_request
def guard() -> Page | None:
    """Ask for the login first, then for the form's token: a stranger's body stays unread."""
    if request.endpoint in LOGIN_NEEDED and not access.logged_in():
        if request.method == "POST":
            lifetime = duration(limits()["session_lifetime"])
            flash(f"Your session is over: it ends after {lifetime}. Nothing was saved.")
            return redirect(url_for("login", next=request.path), 303)
        return redirect(url_for("login", next=request.full_path.rstrip("?")))
    if request.method == "POST" and not access.csrf_ok():
        if request.endpoint == "login":
            return None  # it shows its form again, with a token that holds
        if request.endpoint == "logout" and not access.logged_in():
            return None  # the session ended by itself meanwhile: nothing is left to protect
        if request.endpoint is not None:
            abort(400, "This form is no longer valid. Go back, reload the page and send it again.")
    return None


@app.after_request
def harden(response: Response) -> Response:
    """Rules for the browser."""
    scripted = request.endpoint == "import_job"
    response.headers.setdefault("Content-Security-Policy", OWN_SCRIPT if scripted else POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    return response


@app.get("/healthz")
def healthz() -> Response:
    return Response("ok", mimetype="text/plain")


# The list


@app.get("/")
def home() -> Page:
    current = limits()
    with connection() as conn:
        newest = db.newest_clients(conn, current["home_rows"])
        total = db.client_count.get(conn, current["cache_timeout"])
        months = db.by_month.get(conn, current["cache_timeout"])
    return render_template(
        "home.html",
        clients=newest,
        total=total,
        months={chart.in_words(month): count for month, count in months.items()},
        drawn=chart.installed(),
    )


@app.get("/clients/by-month.png")
def month_chart() -> Page | Response:
    need(chart.installed())
    with connection() as conn:
        months = db.by_month.get(conn, limits()["cache_timeout"])
    variant = chart.Variant(narrow="narrow" in request.args, dark="dark" in request.args)
    path = chart.picture(app.instance_path, months, variant)
    return send_file(path, "image/png", max_age=int(limits()["cache_timeout"]))


@app.get("/clients")
def clients() -> Page:
    current = limits()
    search = request.args.get("q", "").strip()[:100]
    asked = request.args.get("per_page", type=int)
    per_page = max(1, min(asked or current["max_rows"], current["max_rows"]))
    with connection() as conn:
        if search:
            total = db.count_matches(conn, search)
        else:
            total = db.client_count.get(conn, current["cache_timeout"])
        page, pages = page_asked(total, per_page)
        found = db.list_clients(conn, search, per_page, (page - 1) * per_page)
    return render_template(
        "clients.html",
        clients=found,
        search=search,
        total=total,
        page=page,
        pages=pages,
        first=(page - 1) * per_page + 1,
        # What the links to other pages keep.
        kept={"q": search or None, "per_page": per_page if asked else None},
    )


def page_asked(total: int, per_page: int) -> tuple[int, int]:
    """The page that is asked for, and how many there are; or the page that says there is none."""
    pages = max(1, -(-total // per_page))
    asked = request.args.get("page", "1")
    page = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0
    if not 1 <= page <= pages:
        abort(404, f"There is no such page. The last is {pages:,}.")
    return page, pages


@app.get("/clients/<int:client_id>")
def client(client_id: int) -> Page:
    return render_template("client.html", client=existing(client_id))


def existing(client_id: int) -> sqlite3.Row:
    """The client of this id, or the page that says there is none."""
    with connection() as conn:
        found = db.get_client(conn, client_id)
    if found is None:
        abort(404, "There is no such client.")
    return found


@app.route("/clients/new", methods=["GET", "POST"])
def new_client() -> Page:
    if request.method == "GET":
        return render_template("client_form.html", values={}, errors={})
    return save_client(None)


@app.route("/clients/<int:client_id>/edit", methods=["GET", "POST"])
def edit_client(client_id: int) -> Page:
    found = existing(client_id)
    if request.method == "GET":
        return render_template("client_form.html", client=found, values=dict(found), errors={})
    return save_client(found)


def save_client(old: sqlite3.Row | None) -> Page:
    """Save the posted form as a new client or over the old one; or show it again."""
    cleaned, errors = clean_client(request.form)
    if not errors:
        try:
            client_id = write_client(cleaned, old)
        except sqlite3.IntegrityError:
            errors["email"] = "Another client has this address."
        else:
            flash(f"{cleaned.name} is saved.")
            return redirect(url_for("client", client_id=client_id), 303)
    page = render_template("client_form.html", client=old, values=request.form, errors=errors)
    return page, UNPROCESSABLE


def write_client(cleaned: Client, old: sqlite3.Row | None) -> int | None:
    """Insert or update one client and return its id."""
    with connection() as conn:
        if old is None:
            client_id = db.insert_client(conn, cleaned)
        else:
            client_id = old["id"]
            db.update_client(conn, old["id"], cleaned)
        db.drop_counts()
    return client_id


# In and out by the file


@app.route("/import", methods=["GET", "POST"])
def import_page() -> Page:
    if request.method == "GET":
        return render_template("import.html", columns=COLUMNS)
    upload = request.files.get("file")
    if upload is None or not upload.filename:
        refused = ImportRefused([Problem(0, "Choose a file first.")], 1)
        return render_template("import.html", columns=COLUMNS, refused=refused), UNPROCESSABLE
    current = limits()
    try:
        with connection() as conn:
            count = import_clients(conn, upload, current["batch_size"], current["max_rows"])
            db.drop_counts()
    except ImportRefused as refused:
        return render_template("import.html", columns=COLUMNS, refused=refused), UNPROCESSABLE
    flash(f"{count:,} {'client' if count == 1 else 'clients'} imported.")
    return redirect(url_for("home"), 303)


@app.get("/clients.csv")
def export_clients() -> Response:
    response = Response(csv_chunks(pool()))
    response.mimetype = "text/csv"
    response.headers["Content-Disposition"] = "attachment; filename=clients.csv"
    return response


def csv_chunks(pool: db.Pool) -> Iterator[str]:
    """The whole list as CSV, a few rows at a time.

    The connection goes back to the pool before a chunk is sent: a slow download must not keep
    the only one from everybody else.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    last_id = 0
    while True:
        with pool.connection() as conn:
            rows = db.clients_after(conn, last_id, EXPORT_ROWS)
        writer.writerows(row[1:] for row in rows)
        yield buffer.getvalue()
        if len(rows) < EXPORT_ROWS:
            return
        last_id = rows[-1]["id"]
        buffer.seek(0)
        buffer.truncate()


# The same by workbook: the heavy part in a child process


@app.route("/import/excel", methods=["GET", "POST"])
def import_excel() -> Page:
    need(spreadsheets.installed())
    error = ""
    if request.method == "POST":
        upload = request.files.get("file")
        if upload is not None and upload.filename:
            job = excel_jobs.start(pool(), app.config, upload, limits()["max_rows"])
            return redirect(url_for("import_job", job_id=job), 303)
        error = "Choose a file first."
    with connection() as conn:
        latest = jobs.latest(conn, app.config["JOBS"], limits()["home_rows"])
    html = render_template(
        "import_excel.html",
        columns=COLUMNS,
        most_rows=spreadsheets.MOST_ROWS,
        jobs=latest,
        error=error,
    )
    return (html, UNPROCESSABLE) if error else html


@app.get("/imports/<int:job_id>")
def import_job(job_id: int) -> Page:
    """How an import stands. The page may be closed and opened again, here or elsewhere."""
    return render_template("import_job.html", job=existing_job(job_id))


@app.get("/imports/<int:job_id>.json")
def import_progress(job_id: int) -> Response:
    job = existing_job(job_id)
    told = {"over": job.over, "done": job.done, "total": job.total, "step": job.step}
    response = jsonify(told | {"words": excel_jobs.progress(job)})
    response.headers["Cache-Control"] = "no-store"
    return response


def existing_job(job_id: int) -> jobs.Job:
    with connection() as conn:
        job = jobs.get(conn, app.config["JOBS"], job_id)
    if job is None:
        abort(404, f"There is no such import. The last {jobs.KEPT} are kept.")
    return job


@app.get("/clients.xlsx")
def export_excel() -> Response:
    need(spreadsheets.installed())
    # Through a file without a name: the child writes it, the server sends it, and it is gone.
    out = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    try:
        spreadsheets.export_clients(app.config["CLIENTS_DB"], out)
        return send_file(out, spreadsheets.KIND, as_attachment=True, download_name="clients.xlsx")
    except BaseException:
        out.close()
        raise


def need(installed: bool) -> None:
    """The page that says what to install, where it is not."""
    if not installed:
        abort(501, "This needs packages that are not installed: " + INSTALL)


@app.route("/files", methods=["GET", "POST"])
def files() -> Page:
    error = ""
    if request.method == "POST":
        upload = request.files.get("file")
        if upload is None or not upload.filename:
            error = "Choose a file first."
        elif name := storage.save_upload(app.config["UPLOADS"], upload):
            flash(f"{name} is uploaded.")
            return redirect(url_for("files"), 303)
        else:
            error = "This file's name has no letters or digits of ASCII: please rename it."
    stored = storage.stored_files(app.config["UPLOADS"])
    per_page = limits()["max_rows"]
    page, pages = page_asked(len(stored), per_page)
    shown = stored[(page - 1) * per_page : page * per_page]
    html = render_template(
        "files.html", files=shown, total=len(stored), page=page, pages=pages, error=error
    )
    return (html, UNPROCESSABLE) if error else html


@app.get("/files/<name>")
def download_file(name: str) -> Response:
    return send_from_directory(app.config["UPLOADS"], name, as_attachment=True)


# In and out by the door


@app.route("/login", methods=["GET", "POST"])
def login() -> Page:
    target = access.local_path(request.values.get("next", ""))
    error = ""
    if request.method == "POST":
        if not access.csrf_ok():
            error = "This page was open for too long. Please log in again."
        elif access.log_in(request.form.get("name", ""), request.form.get("password", "")):
            return redirect(target or url_for("home"), 303)
        else:
            error = "Name or password is not right."
    elif access.logged_in():
        return redirect(target or url_for("home"))
    html = render_template("login.html", target=target, error=error, access=access)
    return (html, UNPROCESSABLE) if error else html


@app.post("/logout")
def logout() -> Page:
    session.clear()
    flash("You are logged out.")
    return redirect(url_for("home"), 303)


# When it does not work out


@app.errorhandler(HTTPException)
def http_error(error: HTTPException) -> Page | Response:
    """Any refusal, in the style of the site, with the headers that belong to it."""
    response = Response(render_template("error.html", error=error), status=error.code)
    for name, value in error.get_headers(request.environ):
        response.headers.setdefault(name, value)
    return response


@app.errorhandler(InternalServerError)
def server_error(error: InternalServerError) -> Page | Response:
    """A failure of ours. Running out of memory is left to LowMemory, which answers 503."""
    if isinstance(error.original_exception, MemoryError):
        raise error.original_exception
    return http_error(error)


@app.errorhandler(db.PoolBusy)
@app.errorhandler(sqlite3.OperationalError)
def busy(error: Exception) -> Page | Response:
    """The pool's connection, or another process's write, kept us waiting for too long."""
    if isinstance(error, sqlite3.OperationalError) and "locked" not in str(error):
        raise error
    return http_error(ServiceUnavailable("Too much at once. Please try again.", retry_after=2))


@app.template_filter()
def breakable(address: str) -> Markup:
    """An address that a browser may break at its joints, and in a word only after 24 letters."""
    return Markup("<wbr>").join(filter(None, JOINTS.findall(address)))


@app.template_filter()
def when(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(timestamp))
