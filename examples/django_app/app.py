"""A Django project in one file: a shop with 200,000 products in memory, as many real ones have.

The products are built at import, so that ``--preload`` has its fair chance, or with ``SHOP_LAZY=1`` at first use.
"""

import os
import random
from dataclasses import dataclass

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

PRODUCTS = int(os.environ.get("SHOP_PRODUCTS", "200000"))
SHELVES = 1000

settings.configure(
    SECRET_KEY="an example has no secrets",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.http.ConditionalGetMiddleware"],
)
django.setup()


@dataclass(slots=True)
class Product:
    """A row of the catalogue, as it is kept in memory."""

    id: int
    sku: str
    name: str
    price: float
    tags: tuple[str, ...]
    stock: tuple[int, int]


_products: list[Product] = []


def product(number: int) -> Product:
    """One product, with as many small objects in it as a row with relations has."""
    return Product(
        id=number,
        sku=f"SKU-{number:08d}",
        name=f"Product number {number}",
        price=number % 9973 / 100,
        tags=tuple(f"tag-{number % size}" for size in (7, 77, 777)),
        stock=(number % 389, number % 401),
    )


def products() -> list[Product]:
    """The cache, filled when first wanted."""
    if not _products:
        _products.extend(map(product, range(PRODUCTS)))
    return _products


def signed(response: HttpResponse) -> HttpResponse:
    """Say which worker answered."""
    response["X-Worker-Pid"] = str(os.getpid())
    return response


def shelf(request: HttpRequest) -> HttpResponse:
    """List a shelf, every thousandth product, that the client or chance chooses."""
    first = int(request.GET.get("shelf", random.randrange(SHELVES)))
    found = products()[first::SHELVES]
    answer = {
        "shelf": first,
        "products": [{"id": each.id, "sku": each.sku, "name": each.name, "price": each.price} for each in found],
        "value": round(sum(each.price * sum(each.stock) for each in found), 2),
        "tags": len({tag for each in found for tag in each.tags}),
    }
    return signed(JsonResponse(answer))


def health(_: HttpRequest) -> HttpResponse:
    """Answer without touching the cache."""
    return signed(JsonResponse({"status": "ok", "products": len(_products)}))


urlpatterns = [path("", shelf), path("health", health)]

if not os.environ.get("SHOP_LAZY"):
    products()

application: WSGIHandler = get_wsgi_application()
